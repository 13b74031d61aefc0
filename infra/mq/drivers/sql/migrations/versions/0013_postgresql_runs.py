"""Functions with which workers claim and settle on PostgreSQL: long claims of few mailboxes, no quadratic joins."""

from infra.mq.drivers.sql.migrations import create_functions, drop_functions, on_postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if on_postgresql():
        create_functions("close_2", "claim_4", "settle_3")


def downgrade() -> None:
    if on_postgresql():
        drop_functions("settle_3", "claim_4", "close_2")
