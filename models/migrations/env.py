"""Runs this history's migrations, for `infra.db.migrate`."""

from infra.db.migrate import run_environment
from models import Base

run_environment(Base.metadata)
