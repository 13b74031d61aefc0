"""Runs this history's migrations, for `infra.db.migrate`."""

from infra.db.migrate import run_environment

run_environment()
