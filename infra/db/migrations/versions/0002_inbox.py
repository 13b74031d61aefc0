"""Create the inbox: the messages that each `once` listener has handled, committed with the listener's effects."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "beneath_inbox",
        sa.Column("listener", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("handled_at", sa.Double(), nullable=False, comment="seconds since the epoch"),
        sa.PrimaryKeyConstraint("listener", "message_id", name="pk_beneath_inbox"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_beneath_inbox_handled_at", "beneath_inbox", ["handled_at"])


def downgrade() -> None:
    op.drop_table("beneath_inbox")
