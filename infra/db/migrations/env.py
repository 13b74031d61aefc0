"""The Alembic environment of the bus's tables; called by `infra.db.migrate`."""

from infra.db.migrate import run_environment

run_environment()
