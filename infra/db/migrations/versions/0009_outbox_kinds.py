"""The outbox by kind: rows of each kind are found without reading the others; a rejected one keeps the reason."""

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
    # The release before knows no rows that are sent at once: it sends all of them, unordered ones included.
    op.execute("UPDATE beneath_outbox SET kind = 'publish' WHERE kind = 'direct'")
    op.drop_index("ix_beneath_outbox_kind", "beneath_outbox")
    op.drop_column("beneath_outbox", "error")
