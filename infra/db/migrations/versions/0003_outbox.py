"""Create the outbox: messages of committed transactions for a queue that cannot join transactions."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Sent rows are deleted; with reused ids, a delayed DELETE could delete another message.
    op.create_table(
        "beneath_outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("ordering_key", sa.Text(), nullable=True),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.Column("published_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_beneath_outbox_message_id", "beneath_outbox", ["message_id"])
    op.create_table(
        "beneath_relay",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("held_until", sa.Double(), nullable=False),
    )
    op.execute("INSERT INTO beneath_relay (name, owner, held_until) VALUES ('outbox', '', 0)")


def downgrade() -> None:
    op.drop_table("beneath_relay")
    op.drop_table("beneath_outbox")
