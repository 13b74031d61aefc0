"""Create the message queue's tables.

`sqlite/tables.sql` explains the tables and their columns.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
SECONDS: "sa.Double[float]" = sa.Double()
SEQUENCES = ("beneath_number", "beneath_broadcast_number")


def _numbered(sequence: str = "beneath_number") -> "sa.Column[int]":
    default = sa.text(f"nextval('{sequence}')") if op.get_bind().dialect.name == "postgresql" else None
    return sa.Column("id", NUMBER, primary_key=True, autoincrement=False, server_default=default)


def _partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def upgrade() -> None:
    _create_counters()
    _create_registry()
    _create_deliveries()
    _create_mailboxes()
    _create_dead_letters()
    _create_the_rest()


def downgrade() -> None:
    for table in (
        "broadcast",
        "dedupe",
        "worker",
        "dead_letter",
        "mailbox",
        "delivery",
        "broadcast_event",
        "alias",
        "route",
        "subscription",
        "registry",
    ):
        op.drop_table(f"beneath_{table}")
    if op.get_bind().dialect.name == "postgresql":
        for sequence in SEQUENCES:
            op.execute(sa.schema.DropSequence(sa.Sequence(sequence)))
    else:
        op.drop_table("beneath_counter")


def _create_counters() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for sequence in SEQUENCES:
            op.execute(sa.schema.CreateSequence(sa.Sequence(sequence)))
        return
    counter = op.create_table(
        "beneath_counter",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("value", sa.Integer(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.bulk_insert(counter, [{"name": name, "value": 0} for name in SEQUENCES])


def _create_registry() -> None:
    op.create_table(
        "beneath_subscription",
        _numbered(),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        sa.Column("ordered", sa.Integer(), nullable=False),
        sa.Column("paused", sa.Integer(), nullable=False, server_default="0"),
    )
    op.create_table(
        "beneath_route",
        sa.Column("event", sa.Text(), primary_key=True),
        sa.Column("subscription", NUMBER, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_index("beneath_route_subscription", "beneath_route", ["subscription"])
    op.create_table(
        "beneath_alias",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("subscription", NUMBER, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("beneath_alias_subscription", "beneath_alias", ["subscription"])
    op.create_table(
        "beneath_broadcast_event",
        sa.Column("event", sa.Text(), primary_key=True),
        sqlite_with_rowid=False,
    )
    registry = op.create_table(
        "beneath_registry",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("version", NUMBER, nullable=False),
        sa.Column("changed_at", SECONDS, nullable=False),
    )
    op.bulk_insert(registry, [{"id": 1, "version": 0, "changed_at": 0.0}])


def _create_deliveries() -> None:
    op.create_table(
        "beneath_delivery",
        _numbered(),
        sa.Column("subscription", NUMBER, nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("owner", NUMBER),
        sa.Column("due_at", SECONDS, nullable=False),
        sa.Column("published_at", SECONDS, nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("deferrals", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("takeovers", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("crashes", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("isolated", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("ordering_key", sa.Text()),
        sa.Column("mailbox", sa.Text()),
        sa.Column("last_error", sa.Text()),
        sa.Column("last_traceback", sa.Text()),
        sa.Column("body", sa.LargeBinary(), nullable=False),
    )
    table = "beneath_delivery"
    counted = ["published_at", "state"]
    _partial_index(f"{table}_ready", table, ["subscription", "due_at", "id", *counted], "state = 0")
    _partial_index(f"{table}_claimed", table, ["owner", "subscription", *counted], "state = 1")
    _partial_index(f"{table}_parked", table, ["subscription", "event", *counted], "state = 2")
    _partial_index(f"{table}_scheduled", table, ["due_at", "id", "subscription", *counted], "state = 3")
    _partial_index(f"{table}_scheduled_message", table, ["message_id"], "state = 3")
    _partial_index(f"{table}_mailbox", table, ["subscription", "mailbox", "id", *counted], "state = 4")


def _create_mailboxes() -> None:
    op.create_table(
        "beneath_mailbox",
        sa.Column("subscription", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("ordering_key", sa.Text(), primary_key=True),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("due_at", SECONDS, nullable=False),
        sa.Column("turn", NUMBER, nullable=False),
        sa.Column("fence", NUMBER, nullable=False, server_default="0"),
        sa.Column("owner", NUMBER),
        sa.Column("last_id", NUMBER),
        sa.Column("parked_event", sa.Text()),
        sqlite_with_rowid=False,
    )
    table = "beneath_mailbox"
    _partial_index(f"{table}_ready", table, ["subscription", "due_at", "turn"], "state = 0")
    _partial_index(f"{table}_claimed", table, ["owner"], "state = 1")
    _partial_index(f"{table}_parked", table, ["subscription", "parked_event"], "state = 2")
    _partial_index(f"{table}_blocked", table, ["subscription"], "state = 3")


def _create_dead_letters() -> None:
    op.create_table(
        "beneath_dead_letter",
        _numbered(),
        sa.Column("subscription", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("ordering_key", sa.Text()),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("traceback", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("published_at", SECONDS, nullable=False),
        sa.Column("died_at", SECONDS, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
    )
    op.create_index("beneath_dead_letter_subscription", "beneath_dead_letter", ["subscription", "id"])
    op.create_index("beneath_dead_letter_event", "beneath_dead_letter", ["event", "id"])


def _create_the_rest() -> None:
    op.create_table(
        "beneath_worker",
        _numbered(),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("subscriptions", sa.Text(), nullable=False),
        sa.Column("joined_at", SECONDS, nullable=False),
    )
    op.create_table(
        "beneath_dedupe",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("at", SECONDS, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("beneath_dedupe_at", "beneath_dedupe", ["at"])
    op.create_table(
        "beneath_broadcast",
        _numbered("beneath_broadcast_number"),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("at", SECONDS, nullable=False),
        sa.Column("frame", sa.LargeBinary(), nullable=False),
    )
    op.create_index("beneath_broadcast_at", "beneath_broadcast", ["at"])
