"""Functions with which workers claim and settle on PostgreSQL."""

from infra.mq.drivers.sql.migrations import create_former_functions, create_functions, drop_functions, on_postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if on_postgresql():
        create_functions("close_1")
        create_former_functions("claim_1", "settle_1")


def downgrade() -> None:
    if on_postgresql():
        drop_functions("settle_1", "claim_1", "close_1")
