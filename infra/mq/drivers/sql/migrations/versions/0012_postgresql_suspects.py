"""A function with which workers claim on PostgreSQL: the takeovers that make a delivery a suspect are an argument."""

from infra.mq.drivers.sql.migrations import create_former_functions, drop_functions, on_postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if on_postgresql():
        create_former_functions("claim_3")


def downgrade() -> None:
    if on_postgresql():
        drop_functions("claim_3")
