"""Add an index on invites by inviter and time, for their limits and for withdrawal with the inviter."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_invites_invited_by_created_at", "invites", ["invited_by", "created_at"])


def downgrade() -> None:
    op.drop_index("ix_invites_invited_by_created_at", "invites")
