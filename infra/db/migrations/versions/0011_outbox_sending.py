"""Delayed messages of the outbox: whether one may have been sent, so that a cancellation knows whom to ask."""

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
