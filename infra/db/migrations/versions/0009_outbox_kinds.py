"""Add the error of rejected outbox rows, and an index that finds the rows of one kind without reading others."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("beneath_outbox", sa.Column("error", sa.Text(), nullable=True))
    op.create_index("ix_beneath_outbox_kind", "beneath_outbox", ["kind", "id"])


def downgrade() -> None:
    # The previous release does not know rows that are pushed: its relay sends all rows, including unordered ones.
    op.execute("UPDATE beneath_outbox SET kind = 'publish' WHERE kind = 'direct'")
    op.drop_index("ix_beneath_outbox_kind", "beneath_outbox")
    op.drop_column("beneath_outbox", "error")
