"""Add the queue's clock on PostgreSQL: the server's clock, which continues when the server's is set back."""

from alembic import op

from infra.mq.drivers.sql.migrations import create_functions, drop_functions, execute, on_postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if on_postgresql():
        execute("0010_postgresql_clock.sql")
        create_functions("time_1")


def downgrade() -> None:
    if on_postgresql():
        drop_functions("time_1")
        op.drop_table("beneath_clock")
