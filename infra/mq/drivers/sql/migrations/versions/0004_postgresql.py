"""Additions to the queue's tables on PostgreSQL: leases, settings against bloat, and functions for frequent operations.

SQLite needs none of this: its only writer does the same in its own process.
"""

from alembic import op

from infra.mq.drivers.sql.migrations import (
    create_former_functions,
    create_functions,
    drop_functions,
    execute,
    on_postgresql,
)

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if on_postgresql():
        execute("0004_postgresql.sql")
        create_functions("lock_keys_1")
        create_former_functions("place_1", "promote_1", "promote_singly_1", "publish_1_before_0008")


def downgrade() -> None:
    if on_postgresql():
        drop_functions("publish_1", "promote_singly_1", "promote_1", "place_1", "lock_keys_1")
        op.drop_index("beneath_delivery_scheduled_mailbox")
        op.drop_table("beneath_broadcast_last")
        op.drop_column("beneath_worker", "lease_until")
