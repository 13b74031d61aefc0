"""Functions with which workers claim and settle on PostgreSQL: claims have an epoch and a fence, steps are bounded.

The functions of 0005 serve the previous release.
"""

from alembic import op

from infra.mq.drivers.sql.migrations import (
    create_former_functions,
    create_functions,
    drop_functions,
    execute,
    on_postgresql,
)

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if on_postgresql():
        execute("0007_postgresql_claims.sql")
        create_functions("remove_retired_2")
        create_former_functions("settle_2", "claim_2")


def downgrade() -> None:
    if on_postgresql():
        drop_functions("settle_2", "claim_2", "remove_retired_2")
        op.drop_index("beneath_delivery_scheduled_subscription")
        op.drop_column("beneath_worker", "epoch")
