"""Add fences of claims, needs of parked deliveries, ids per event, retirements, and SQLite's clock.

The previous release still works beside this one: new columns have defaults, and all tables and indexes that it uses
stay. Tables that only the previous release writes are dropped one release later.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
SECONDS: "sa.Double[float]" = sa.Double()

COUNTED = "published_at, state"
"""The last columns of an index that `bus stats` counts."""


def upgrade() -> None:
    _name_claims()
    _remember_ids_by_event()
    _retire_in_steps()
    _tell_when_all_know()
    if op.get_bind().dialect.name == "sqlite":
        _keep_time()
        _promote_by_subscription()


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("beneath_delivery_scheduled_mailbox")
        op.drop_index("beneath_delivery_scheduled")
        _index("scheduled", f"due_at, id, subscription, {COUNTED}", "state = 3")
        op.drop_table("beneath_clock")
    for column in ("visible_at", "visible_version"):
        op.drop_column("beneath_registry", column)
    op.drop_table("beneath_retirement")
    op.drop_table("beneath_accepted")
    op.drop_index("beneath_delivery_parked")
    for column in ("needs", "fence"):
        op.drop_column("beneath_delivery", column)
    _index("parked", f"subscription, event, {COUNTED}", "state = 2")


def _name_claims() -> None:
    op.add_column("beneath_delivery", sa.Column("fence", NUMBER, nullable=False, server_default="0"))
    op.add_column("beneath_delivery", sa.Column("needs", sa.Text()))
    op.drop_index("beneath_delivery_parked")
    _index("parked", f"subscription, coalesce(needs, event), id, {COUNTED}", "state = 2")


def _remember_ids_by_event() -> None:
    op.create_table(
        "beneath_accepted",
        sa.Column("event", sa.Text(), primary_key=True),
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("at", SECONDS, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("beneath_accepted_at", "beneath_accepted", ["at"])


def _retire_in_steps() -> None:
    op.create_table(
        "beneath_retirement",
        sa.Column("subscription", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("event", sa.Text(), primary_key=True),
        sa.Column("backlog", sa.Text(), nullable=False),
        sqlite_with_rowid=False,
    )


def _tell_when_all_know() -> None:
    op.add_column("beneath_registry", sa.Column("visible_version", NUMBER, nullable=False, server_default="0"))
    op.add_column("beneath_registry", sa.Column("visible_at", SECONDS, nullable=False, server_default="0"))
    op.execute("UPDATE beneath_registry SET visible_version = version, visible_at = changed_at")


def _keep_time() -> None:
    op.create_table(
        "beneath_clock",
        sa.Column("boot", sa.Text(), primary_key=True),
        sa.Column("ahead", SECONDS, nullable=False),
        sa.Column("seen", SECONDS, nullable=False),
        sqlite_with_rowid=False,
    )


def _promote_by_subscription() -> None:
    op.drop_index("beneath_delivery_scheduled")
    _index("scheduled", f"subscription, due_at, id, {COUNTED}", "state = 3")
    _index("scheduled_mailbox", "subscription, mailbox, due_at, id", "state = 3 AND mailbox IS NOT NULL")


def _index(name: str, columns: str, where: str) -> None:
    # As text, because one of the columns is an expression.
    op.execute(f"CREATE INDEX beneath_delivery_{name} ON beneath_delivery ({columns}) WHERE {where}")
