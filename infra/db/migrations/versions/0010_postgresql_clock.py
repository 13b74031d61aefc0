"""Add the queue's clock on PostgreSQL: the server's clock, which continues when the server's is set back."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

SLOWER = 0.1
"""The fraction by which the queue's clock runs slower than the server's while it is ahead."""

STEP = 0.5
"""The difference, in seconds, from the expected time from which the server's clock counts as set."""

TABLES = (
    """
    CREATE TABLE beneath_clock (
        id integer PRIMARY KEY,
        ahead double precision NOT NULL,
        since double precision NOT NULL,
        seen double precision NOT NULL
    ) WITH (fillfactor = 10)
    """,
    """
    INSERT INTO beneath_clock VALUES (1, 0, 0, '-infinity')
    """,
)

TIME = f"""
-- Return the queue's time. A process that has called this before expects a time between `earliest` and `latest` by its
-- monotonic clock; `seen` is the latest time returned to any process. When the server's clock is set back, the queue's
-- time neither goes back nor stops: it runs a tenth slower until both agree. If the server's clock is then set forward,
-- the queue's time is less far ahead. `slower` is true while the queue's time is ahead.
CREATE FUNCTION beneath_time_1(
    earliest double precision, latest double precision, OUT reached double precision, OUT slower boolean
) LANGUAGE plpgsql AS $$
DECLARE
    kept beneath_clock%ROWTYPE;
    mine boolean := true;
    server double precision;
    ahead_by double precision;
BEGIN
    SELECT * INTO kept FROM beneath_clock WHERE id = 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        mine := false;
        SELECT * INTO kept FROM beneath_clock WHERE id = 1;
    END IF;
    server := extract(epoch FROM clock_timestamp());
    ahead_by := greatest(0, kept.ahead - greatest(0, server - kept.since) * {SLOWER});
    reached := server + ahead_by;
    IF reached < greatest(earliest, kept.seen) - {STEP} THEN
        reached := greatest(earliest, kept.seen);
    ELSIF ahead_by > 0 AND reached > latest + {STEP} THEN
        reached := greatest(server, latest);
    END IF;
    slower := reached > server;
    IF mine THEN
        UPDATE beneath_clock SET ahead = reached - server, since = server, seen = reached WHERE id = 1;
    END IF;
END $$
"""  # noqa: S608  # constants only


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for statement in (*TABLES, TIME):
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.get_bind().exec_driver_sql("DROP FUNCTION beneath_time_1")
    op.get_bind().exec_driver_sql("DROP TABLE beneath_clock")
