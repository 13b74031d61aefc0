"""Add whether a delayed outbox message may have been sent, so that `cancel` knows whether to ask the queue."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("beneath_outbox", sa.Column("sending", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("beneath_outbox", "sending")
