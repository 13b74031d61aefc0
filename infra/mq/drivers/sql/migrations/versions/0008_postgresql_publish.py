"""Functions for publishing and promotion on PostgreSQL: ids are stored per event, and promotion runs in bounded steps.

The previous release's function for publishing is redefined, so that both releases store the same ids.
"""

import sqlalchemy as sa
from alembic import op

from infra.mq.drivers.sql.migrations import (
    create_former_functions,
    create_functions,
    drop_functions,
    execute,
    on_postgresql,
)

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if on_postgresql():
        execute("0008_postgresql_publish.sql")
        create_functions("place_2", "bury_scheduled_2", "promote_2", "publish_2")
        op.execute("ALTER FUNCTION beneath_publish_1 RENAME TO beneath_publish_1_before_0008")
        create_former_functions("publish_1")


def downgrade() -> None:
    if not on_postgresql():
        return
    drop_functions("publish_1")
    op.execute("ALTER FUNCTION beneath_publish_1_before_0008 RENAME TO beneath_publish_1")
    drop_functions("publish_2", "promote_2", "bury_scheduled_2", "place_2")
    table = "beneath_delivery"
    op.create_index(f"{table}_scheduled_message", table, ["message_id"], postgresql_where=sa.text("state = 3"))
    in_mailbox = sa.text("state = 3 AND mailbox IS NOT NULL")
    op.create_index(f"{table}_scheduled_mailbox", table, ["mailbox", "due_at", "id"], postgresql_where=in_mailbox)
    op.drop_index(f"{table}_due_message")
    op.drop_index(f"{table}_due_mailbox")
