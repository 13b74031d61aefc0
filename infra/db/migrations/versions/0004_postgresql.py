"""Additions to the queue's tables on PostgreSQL: leases, settings against bloat, and functions for frequent operations.

These operations are functions because each has several statements, which must see the changes for which the previous
statement waited: in a function each has its own snapshot (READ COMMITTED), and the call takes one round trip. Each name
ends in a number, so that code from before and after a later migration can run side by side.

SQLite needs none of this: its only writer does the same in its own process.

Locks, in the order in which they are acquired (docs/adr gives the reasons):

1. the registry (advisory; shared by publishers until they commit, exclusive for `declare` and `retire`);
2. ids of messages with `dedupe`, sorted;
3. scheduled messages, each by its first delivery, sorted;
4. ordering keys (advisory, 1024 stripes, sorted; exclusive for a transaction that adds to a mailbox until it commits,
   so that numbers within a mailbox are in the order of commits). A worker that empties a mailbox only tries to get a
   shared lock, and without the lock it does not delete the mailbox;
5. mailboxes, sorted by subscription and key. Publishers insert them and never wait for one.

So workers wait for no transaction of the application.
"""

# ruff: noqa: S608  # statements are put together from the constants below
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

REGISTRY = 1_650_812_527
KEYS = 1_650_812_528
"""The classes of advisory locks."""

STRIPES = 1023
"""The bit mask for the stripes of ordering keys: their number less one."""

INDEXED = (
    "SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off "
    "SET enable_hashjoin = off SET enable_mergejoin = off"
)
"""Cached plans halve a call's time; without sequential scans, a plan made for an empty table stays fast later."""

BUSY = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0"

TABLES = (
    """
    ALTER TABLE beneath_worker ADD COLUMN lease_until double precision NOT NULL DEFAULT 0
    """,
    """
    ALTER TABLE beneath_worker SET (fillfactor = 50)
    """,
    # No delivery in the mailbox has a lower number. A search for the head begins here, and so skips handled deliveries
    # that stay in the index while an old transaction is open.
    """
    ALTER TABLE beneath_mailbox ADD COLUMN first_id bigint NOT NULL DEFAULT 0
    """,
    """
    CREATE TABLE beneath_broadcast_last (
        id integer PRIMARY KEY,
        number bigint NOT NULL
    ) WITH (fillfactor = 10)
    """,
    """
    INSERT INTO beneath_broadcast_last VALUES (1, 0)
    """,
    """
    ALTER TABLE beneath_subscription ALTER COLUMN name TYPE text COLLATE "C"
    """,
    """
    ALTER TABLE beneath_alias ALTER COLUMN name TYPE text COLLATE "C"
    """,
    """
    ALTER TABLE beneath_route ALTER COLUMN event TYPE text COLLATE "C"
    """,
    """
    ALTER TABLE beneath_dedupe ALTER COLUMN id TYPE text COLLATE "C"
    """,
    """
    ALTER TABLE beneath_mailbox ALTER COLUMN ordering_key TYPE text COLLATE "C"
    """,
    """
    ALTER TABLE beneath_delivery
        ALTER COLUMN message_id TYPE text COLLATE "C",
        ALTER COLUMN mailbox TYPE text COLLATE "C",
        ALTER COLUMN body SET STORAGE EXTERNAL
    """,
    """
    CREATE INDEX beneath_delivery_scheduled_mailbox ON beneath_delivery (mailbox, due_at, id)
        WHERE state = 3 AND mailbox IS NOT NULL
    """,
    f"""
    ALTER TABLE beneath_delivery SET ({BUSY})
    """,
    f"""
    ALTER TABLE beneath_mailbox SET ({BUSY})
    """,
    f"""
    ALTER TABLE beneath_dedupe SET ({BUSY})
    """,
    f"""
    ALTER TABLE beneath_broadcast SET ({BUSY})
    """,
)

LOCK_KEYS = f"""
CREATE FUNCTION beneath_lock_keys_1(keys text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({KEYS}, stripe)
    FROM (SELECT DISTINCT hashtext(key) & {STRIPES} AS stripe FROM unnest(keys) AS key ORDER BY 1) AS sorted;
END $$
"""

PLACE = f"""
-- Promote due scheduled messages, in the same order in all mailboxes. The caller has locked their first deliveries and
-- their keys. Unless they may overtake, messages behind an earlier one that another transaction has locked are not
-- promoted. They become new rows for the workers: an updated row would be locked by the transaction that waited for it.
CREATE FUNCTION beneath_place_1(messages text[], now_at double precision, overtaking boolean) RETURNS void
LANGUAGE plpgsql {INDEXED} AS $$
BEGIN
    WITH mine AS MATERIALIZED (
        SELECT d.id, d.message_id, d.mailbox, d.due_at, min(d.id) OVER (PARTITION BY d.message_id, d.due_at) AS first
        FROM unnest(messages) AS m (id)
        JOIN beneath_delivery AS d ON d.state = 3 AND d.message_id = m.id AND d.due_at <= now_at
    ), ahead AS MATERIALIZED (
        SELECT DISTINCT ON (d.mailbox) d.mailbox, d.due_at, d.id
        FROM (SELECT DISTINCT mailbox FROM mine WHERE mailbox IS NOT NULL AND NOT overtaking) AS k
        JOIN beneath_delivery AS d ON d.state = 3 AND d.mailbox = k.mailbox AND d.due_at <= now_at
        WHERE d.message_id NOT IN (SELECT unnest(messages)) ORDER BY d.mailbox, d.due_at, d.id
    ), due AS MATERIALIZED (
        SELECT id, due_at, first FROM mine WHERE message_id NOT IN (
            SELECT l.message_id FROM mine AS l JOIN ahead AS a ON a.mailbox = l.mailbox
            WHERE (a.due_at, a.id) < (l.due_at, l.id)
        )
    ), numbered AS MATERIALIZED (
        SELECT s.id, nextval('beneath_number') AS number
        FROM (SELECT id FROM due ORDER BY due_at, first, id) AS s
    ), gone AS (
        DELETE FROM beneath_delivery AS d USING numbered AS n WHERE d.id = n.id RETURNING n.number, d.*
    ), placed AS (
        INSERT INTO beneath_delivery
            (id, subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
        SELECT number, subscription, CASE WHEN mailbox IS NULL THEN 0 ELSE 4 END,
            CASE WHEN due_at = 0 THEN now_at ELSE due_at END,
            published_at, message_id, event, ordering_key, mailbox, body
        FROM gone ORDER BY number
        RETURNING subscription, mailbox, due_at, id
    )
    INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, first_id)
    SELECT subscription, mailbox, 0, min(due_at), min(id), min(id) FROM placed WHERE mailbox IS NOT NULL
    GROUP BY subscription, mailbox ORDER BY subscription, mailbox
    ON CONFLICT DO NOTHING;
END $$
"""

PROMOTE = f"""
-- Promote due messages, or the `chosen` ones. All deliveries of a message are promoted together, so that a
-- cancellation finds all of them or none.
CREATE FUNCTION beneath_promote_1(now_at double precision, most integer, chosen text[]) RETURNS void
LANGUAGE plpgsql SET lock_timeout = '100ms' {INDEXED} AS $$
DECLARE
    firsts bigint[];
    messages text[];
BEGIN
    messages := coalesce(chosen, ARRAY(
        SELECT DISTINCT message_id FROM (
            SELECT message_id FROM beneath_delivery WHERE state = 3 AND due_at <= now_at ORDER BY due_at, id LIMIT most
        ) AS due
    ));
    firsts := ARRAY(
        SELECT min(d.id) FROM unnest(messages) AS m (id)
        JOIN beneath_delivery AS d ON d.state = 3 AND d.message_id = m.id AND d.due_at <= now_at GROUP BY m.id
    );
    messages := ARRAY(
        SELECT message_id FROM beneath_delivery WHERE id = ANY (firsts) AND state = 3 ORDER BY id
        FOR UPDATE SKIP LOCKED
    );
    IF cardinality(messages) = 0 THEN
        RETURN;
    END IF;
    PERFORM beneath_lock_keys_1(ARRAY(
        SELECT d.mailbox FROM unnest(messages) AS m (id)
        JOIN beneath_delivery AS d ON d.state = 3 AND d.message_id = m.id WHERE d.mailbox IS NOT NULL
    ));
    PERFORM beneath_place_1(messages, now_at, false);
END $$
"""

PROMOTE_SINGLY = f"""
-- Promote them one by one, in random order, after promoting them together has waited too long for a lock.
CREATE FUNCTION beneath_promote_singly_1(now_at double precision) RETURNS void LANGUAGE plpgsql {INDEXED} AS $$
DECLARE
    single text;
    stuck integer := 0;
BEGIN
    FOR single IN
        SELECT message_id FROM (
            SELECT DISTINCT message_id FROM (
                SELECT message_id FROM beneath_delivery
                WHERE state = 3 AND due_at <= now_at ORDER BY due_at, id LIMIT 2000
            ) AS due
        ) AS several ORDER BY random() LIMIT 200
    LOOP
        BEGIN
            PERFORM beneath_promote_1(now_at, 1, ARRAY[single]);
        EXCEPTION WHEN lock_not_available THEN
            stuck := stuck + 1;
            EXIT WHEN stuck = 3;
        END;
    END LOOP;
END $$
"""

PUBLISH = f"""
-- Returns 0: done. 1: done, but the caller must call `beneath_promote_1` for ordered deliveries after COMMIT. 2:
-- nothing done; this transaction's snapshot has an old registry, so the caller must pass the present routes.
CREATE FUNCTION beneath_publish_1(
    ids text[], events text[], keys text[], dues double precision[], published double precision[], dedupes boolean[],
    bodies bytea[], now_at double precision, forgotten_at double precision,
    route_events text[], route_subscriptions bigint[], route_ordered boolean[], patience text
) RETURNS integer LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    -- A strict transaction cannot wait for other writers of a row, only fail: such rows are left for later.
    frozen CONSTANT boolean := current_setting('transaction_isolation') <> 'read committed';
    kept boolean[];
    mailboxes text[] := '{{}}';
    earlier text[] := '{{}}';
    first_number bigint;
BEGIN
    IF patience IS NOT NULL THEN
        PERFORM set_config('lock_timeout', patience, true);
    END IF;
    PERFORM pg_advisory_xact_lock_shared({REGISTRY}, 0);
    IF route_events IS NULL THEN
        IF frozen THEN
            RETURN 2;
        END IF;
        SELECT array_agg(r.event), array_agg(s.id), array_agg(s.ordered = 1)
        INTO route_events, route_subscriptions, route_ordered
        FROM beneath_route AS r JOIN beneath_subscription AS s ON s.id = r.subscription WHERE r.event = ANY (events);
    END IF;

    IF true = ANY (dedupes) THEN
        WITH firsts AS MATERIALIZED (
            SELECT DISTINCT ON (m.id COLLATE "C") m.id, m.place
            FROM unnest(ids, dedupes) WITH ORDINALITY AS m (id, dedupe, place)
            WHERE m.dedupe ORDER BY m.id COLLATE "C", m.place
        ), accepted AS (
            INSERT INTO beneath_dedupe AS d (id, at) SELECT f.id, now_at FROM firsts AS f ORDER BY f.id COLLATE "C"
            ON CONFLICT (id) DO UPDATE SET at = excluded.at WHERE d.at <= forgotten_at RETURNING d.id
        )
        SELECT array_agg(NOT m.dedupe OR a.id IS NOT NULL ORDER BY m.place) INTO kept
        FROM unnest(ids, dedupes) WITH ORDINALITY AS m (id, dedupe, place)
        LEFT JOIN firsts AS f ON f.id = m.id AND f.place = m.place LEFT JOIN accepted AS a ON a.id = f.id;
    END IF;

    IF true = ANY (route_ordered) THEN
        mailboxes := ARRAY(
            SELECT DISTINCT coalesce(m.key, '') FROM unnest(events, keys, dues, kept) AS m (event, key, due, kept)
            JOIN unnest(route_events, route_ordered) AS r (event, ordered) ON r.event = m.event AND r.ordered
            WHERE coalesce(m.kept, true) AND (m.due IS NULL OR m.due <= now_at)
        );
    END IF;
    IF cardinality(mailboxes) > 0 AND NOT frozen THEN
        earlier := ARRAY(
            SELECT DISTINCT message_id FROM beneath_delivery
            WHERE state = 3 AND mailbox = ANY (mailboxes) AND due_at <= now_at
        );
        IF cardinality(earlier) > 0 THEN
            PERFORM 1 FROM beneath_delivery WHERE id IN (
                SELECT min(id) FROM beneath_delivery WHERE state = 3 AND message_id = ANY (earlier)
                    AND due_at <= now_at GROUP BY message_id
            ) ORDER BY id FOR UPDATE;
        END IF;
        PERFORM beneath_lock_keys_1(mailboxes);
        IF cardinality(earlier) > 0 THEN
            PERFORM beneath_place_1(earlier, now_at, true);
        END IF;
        first_number := nextval('beneath_number');
        INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, first_id)
        SELECT n.subscription, n.key, 0, n.due_at, nextval('beneath_number'), first_number FROM (
            SELECT r.subscription, coalesce(m.key, '') AS key, min(coalesce(m.due, now_at)) AS due_at
            FROM unnest(events, keys, dues, kept) WITH ORDINALITY AS m (event, key, due, kept, place)
            JOIN unnest(route_events, route_subscriptions, route_ordered) AS r (event, subscription, ordered)
                ON r.event = m.event AND r.ordered
            WHERE coalesce(m.kept, true) AND (m.due IS NULL OR m.due <= now_at)
            GROUP BY 1, 2 ORDER BY min(m.place), 1
        ) AS n
        ON CONFLICT DO NOTHING;
    END IF;

    INSERT INTO beneath_delivery
        (subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
    SELECT r.subscription,
        CASE WHEN m.due > now_at THEN 3 WHEN NOT r.ordered THEN 0 WHEN frozen THEN 3 ELSE 4 END,
        CASE WHEN m.due > now_at THEN m.due WHEN r.ordered AND frozen THEN 0 ELSE coalesce(m.due, now_at) END,
        m.published, m.id, m.event, m.key, CASE WHEN r.ordered THEN coalesce(m.key, '') END, m.body
    FROM unnest(ids, events, keys, dues, published, bodies, kept) WITH ORDINALITY
        AS m (id, event, key, due, published, body, kept, place)
    JOIN unnest(route_events, route_subscriptions, route_ordered) AS r (event, subscription, ordered)
        ON r.event = m.event
    WHERE coalesce(m.kept, true) ORDER BY m.place, r.subscription;
    RETURN CASE WHEN frozen AND cardinality(mailboxes) > 0 THEN 1 ELSE 0 END;
END $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for statement in (*TABLES, LOCK_KEYS, PLACE, PROMOTE, PROMOTE_SINGLY, PUBLISH):
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return
    for name in ("publish", "promote_singly", "promote", "place", "lock_keys"):
        bind.exec_driver_sql(f"DROP FUNCTION beneath_{name}_1")
    bind.exec_driver_sql("DROP INDEX beneath_delivery_scheduled_mailbox")
    bind.exec_driver_sql("DROP TABLE beneath_broadcast_last")
    bind.exec_driver_sql("ALTER TABLE beneath_worker DROP COLUMN lease_until")
