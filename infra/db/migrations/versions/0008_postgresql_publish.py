"""Functions for publishing and promotion on PostgreSQL: ids are stored per event, and promotion runs in bounded steps.

Workers promote due scheduled messages in steps, each a transaction of its own; a step skips rows that another
transaction has locked, and waits for no lock. A publisher still promotes the messages of a mailbox that became due
before its own; if these are more than a few, its own messages are stored as scheduled too, behind them.

A message whose row cannot be promoted becomes a dead letter, because it would block all later ones. The rules of 0004
for locks and their order apply here too.
"""

# ruff: noqa: S608  # statements are put together from the constants below
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

REGISTRY = 1_650_812_527
KEYS = 1_650_812_528
"""The classes of advisory locks, as in 0004."""

STRIPES = 1023
"""The bit mask for the stripes of ordering keys, as in 0004."""

BYTES = 8 * 1024 * 1024
"""The size of bodies, in bytes, after which a promotion step takes no more messages."""

FEW = 50
"""The maximum number of due deliveries of one mailbox that a publisher promotes."""

MOST = 500
"""The same over all mailboxes of the publisher."""

SKEW = 1.0
"""The largest difference between the clocks of two publishers, in seconds."""

PATIENCE = 20
"""Milliseconds that a promotion step waits for a row that another transaction has locked."""

STUCK = 3
"""The maximum number of such waits in a promotion step; the remaining messages are left for later."""

REFUSED = "program_limit_exceeded OR data_exception OR integrity_constraint_violation"
"""The conditions of errors that the row itself causes, and that would occur again."""

INDEXED = (
    "SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off "
    "SET enable_hashjoin = off SET enable_mergejoin = off"
)
"""Plans are cached; one made for an empty table must not read the whole table later. See 0005."""

# Each index is the only one that its statement can use: for an empty table the planner considers all equally good.
INDEXES = (
    "CREATE INDEX beneath_delivery_due_message ON beneath_delivery (message_id) WHERE state + 0 = 3",
    """
    CREATE INDEX beneath_delivery_due_mailbox ON beneath_delivery (mailbox, due_at, id)
        WHERE state - 3 = 0 AND mailbox IS NOT NULL
    """,
    "DROP INDEX beneath_delivery_scheduled_message",
    "DROP INDEX beneath_delivery_scheduled_mailbox",
)
FORMER_INDEXES = (
    "CREATE INDEX beneath_delivery_scheduled_message ON beneath_delivery (message_id) WHERE state = 3",
    """
    CREATE INDEX beneath_delivery_scheduled_mailbox ON beneath_delivery (mailbox, due_at, id)
        WHERE state = 3 AND mailbox IS NOT NULL
    """,
    "DROP INDEX beneath_delivery_due_message",
    "DROP INDEX beneath_delivery_due_mailbox",
)

PLACE = f"""
-- Promote due scheduled messages, in the same order in all mailboxes. The caller has locked their first deliveries and
-- their keys. Unless they may overtake, messages behind an earlier one that another transaction has locked are not
-- promoted. They become new rows for the workers: an updated row would be locked by the transaction that waited for it.
-- Returns the number of promoted deliveries.
CREATE FUNCTION beneath_place_2(messages text[], now_at double precision, overtaking boolean) RETURNS integer
LANGUAGE plpgsql {INDEXED} AS $$
DECLARE
    placed_count integer;
BEGIN
    WITH mine AS MATERIALIZED (
        SELECT d.id, d.message_id, d.mailbox, d.due_at, min(d.id) OVER (PARTITION BY d.message_id, d.due_at) AS first
        FROM unnest(messages) AS m (id) CROSS JOIN LATERAL (
            SELECT t.* FROM beneath_delivery AS t
            WHERE t.state + 0 = 3 AND t.message_id = m.id AND t.due_at <= now_at OFFSET 0
        ) AS d
    ), last AS MATERIALIZED (
        SELECT mailbox, max(due_at) AS due_at FROM mine WHERE mailbox IS NOT NULL AND NOT overtaking GROUP BY mailbox
    ), ahead AS MATERIALIZED (
        SELECT l.mailbox, a.due_at, a.id FROM last AS l CROSS JOIN LATERAL (
            SELECT d.due_at, d.id FROM beneath_delivery AS d
            WHERE d.state - 3 = 0 AND d.mailbox = l.mailbox AND d.due_at <= l.due_at
                AND NOT d.message_id = ANY (messages)
            ORDER BY d.due_at, d.id LIMIT 1
        ) AS a
    ), behind AS MATERIALIZED (
        SELECT DISTINCT m.message_id FROM ahead AS a JOIN mine AS m ON m.mailbox = a.mailbox
        WHERE (a.due_at, a.id) < (m.due_at, m.id)
    ), due AS MATERIALIZED (
        SELECT id, due_at, first FROM mine WHERE message_id NOT IN (SELECT message_id FROM behind)
    ), numbered AS MATERIALIZED (
        SELECT s.id, nextval('beneath_number') AS number
        FROM (SELECT id FROM due ORDER BY due_at, first, id) AS s
    ), gone AS (
        DELETE FROM beneath_delivery AS d WHERE d.id = ANY (ARRAY(SELECT id FROM numbered)) RETURNING d.*
    ), placed AS (
        INSERT INTO beneath_delivery
            (id, subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
        SELECT n.number, subscription, CASE WHEN mailbox IS NULL THEN 0 ELSE 4 END,
            CASE WHEN due_at = 0 THEN now_at ELSE due_at END,
            published_at, message_id, event, ordering_key, mailbox, body
        FROM gone AS g JOIN numbered AS n ON n.id = g.id ORDER BY n.number
        RETURNING subscription, mailbox, due_at, id
    ), opened AS (
        INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, first_id)
        SELECT subscription, mailbox, 0, min(due_at), min(id), min(id) FROM placed WHERE mailbox IS NOT NULL
        GROUP BY subscription, mailbox ORDER BY subscription, mailbox
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) INTO placed_count FROM placed;
    RETURN placed_count;
END $$
"""

BURY = f"""
-- Turn the due deliveries of a scheduled message into dead letters.
CREATE FUNCTION beneath_bury_scheduled_2(message text, now_at double precision, reason text) RETURNS void
LANGUAGE plpgsql {INDEXED} AS $$
BEGIN
    WITH gone AS (
        DELETE FROM beneath_delivery AS d WHERE d.state + 0 = 3 AND d.message_id = message AND d.due_at <= now_at
        RETURNING d.*
    )
    INSERT INTO beneath_dead_letter (
        subscription, message_id, event, ordering_key, error, traceback, failures, crashes, published_at, died_at, body
    )
    SELECT s.name, g.message_id, g.event, g.ordering_key, reason, '', g.failures, g.crashes, g.published_at, now_at,
        g.body
    FROM gone AS g JOIN beneath_subscription AS s ON s.id = g.subscription ORDER BY g.id;
END $$
"""

PROMOTE = f"""
-- Promote one step of due messages: the first `most` deliveries after (`after_at`, `after_id`), or the `chosen`
-- messages. All deliveries of a message are promoted together, so that a cancellation finds all of them or none.
-- Messages locked by another transaction are left for later. Returns the number of promoted deliveries and the position
-- where the step ended; NULL means that no more follow.
CREATE FUNCTION beneath_promote_2(
    now_at double precision, most integer, after_at double precision, after_id bigint, chosen text[],
    OUT placed integer, OUT last_at double precision, OUT last_id bigint
) LANGUAGE plpgsql SET lock_timeout = '{PATIENCE}ms' {INDEXED} AS $$
DECLARE
    messages text[] := chosen;
    single text;
    stuck integer := 0;
BEGIN
    placed := 0;
    IF chosen IS NULL THEN
        WITH due AS MATERIALIZED (
            SELECT d.due_at, d.id, d.message_id, octet_length(d.body) AS size FROM beneath_delivery AS d
            WHERE d.state = 3 AND d.due_at <= now_at AND (d.due_at, d.id) > (after_at, after_id)
            ORDER BY d.due_at, d.id LIMIT most
        ), measured AS MATERIALIZED (
            SELECT d.*, sum(d.size) OVER in_order - d.size AS before, row_number() OVER in_order AS nth
            FROM due AS d WINDOW in_order AS (ORDER BY d.due_at, d.id)
        ), taken AS MATERIALIZED (
            SELECT * FROM measured WHERE before <= {BYTES}
        )
        SELECT array_agg(DISTINCT t.message_id), max(t.due_at), (array_agg(t.id ORDER BY t.nth DESC))[1]
        INTO messages, last_at, last_id FROM taken AS t;
    END IF;
    IF messages IS NULL THEN
        RETURN;
    END IF;
    messages := ARRAY(
        SELECT f.message_id FROM beneath_delivery AS f
        WHERE f.state * 1 = 3 AND f.id = ANY (ARRAY(
            SELECT d.first FROM unnest(messages) AS m (id) CROSS JOIN LATERAL (
                SELECT min(t.id) AS first FROM beneath_delivery AS t
                WHERE t.state + 0 = 3 AND t.message_id = m.id AND t.due_at <= now_at
            ) AS d WHERE d.first IS NOT NULL
        )) ORDER BY f.id FOR UPDATE SKIP LOCKED
    );
    -- A publisher holds the key until it commits; its messages must not be numbered in between.
    messages := ARRAY(
        SELECT k.id FROM (
            SELECT m.id, d.mailbox FROM unnest(messages) AS m (id) CROSS JOIN LATERAL (
                SELECT max(t.mailbox) AS mailbox FROM beneath_delivery AS t
                WHERE t.state + 0 = 3 AND t.message_id = m.id
            ) AS d ORDER BY m.id OFFSET 0
        ) AS k
        WHERE k.mailbox IS NULL OR pg_try_advisory_xact_lock({KEYS}, hashtext(k.mailbox) & {STRIPES})
    );
    IF cardinality(messages) = 0 THEN
        RETURN;
    END IF;
    BEGIN
        placed := beneath_place_2(messages, now_at, false);
    EXCEPTION WHEN {REFUSED} OR lock_not_available THEN
        FOREACH single IN ARRAY messages LOOP
            BEGIN
                placed := placed + beneath_place_2(ARRAY[single], now_at, false);
            EXCEPTION
                WHEN {REFUSED} THEN
                    PERFORM beneath_bury_scheduled_2(single, now_at, 'PostgreSQL refuses its place: ' || SQLERRM);
                WHEN lock_not_available THEN
                    stuck := stuck + 1;
                    EXIT WHEN stuck = {STUCK};
            END;
        END LOOP;
    END;
END $$
"""

PUBLISH = f"""
-- Returns 0: done. 1: done, but the caller must call `beneath_promote_2` after COMMIT. 2: nothing done; this
-- transaction's snapshot has an old registry, so the caller must pass the present routes.
CREATE FUNCTION beneath_publish_2(
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
    crowded text[] := '{{}}';
    crowded_until double precision[] := '{{}}';
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
            SELECT DISTINCT ON (m.event COLLATE "C", m.id COLLATE "C") m.event, m.id, m.place
            FROM unnest(events, ids, dedupes) WITH ORDINALITY AS m (event, id, dedupe, place)
            WHERE m.dedupe AND NOT EXISTS (
                -- The previous release stores ids without events.
                SELECT 1 FROM beneath_dedupe AS o WHERE o.id = m.id AND o.at > forgotten_at
            ) ORDER BY m.event COLLATE "C", m.id COLLATE "C", m.place
        ), accepted AS (
            INSERT INTO beneath_accepted AS d (event, id, at)
            SELECT f.event, f.id, now_at FROM firsts AS f ORDER BY f.event COLLATE "C", f.id COLLATE "C"
            ON CONFLICT (event, id) DO UPDATE SET at = excluded.at WHERE d.at <= forgotten_at RETURNING d.event, d.id
        )
        SELECT array_agg(NOT m.dedupe OR a.id IS NOT NULL ORDER BY m.place) INTO kept
        FROM unnest(events, ids, dedupes) WITH ORDINALITY AS m (event, id, dedupe, place)
        LEFT JOIN firsts AS f ON f.place = m.place LEFT JOIN accepted AS a ON a.event = f.event AND a.id = f.id;
    END IF;

    IF true = ANY (route_ordered) THEN
        mailboxes := ARRAY(
            SELECT DISTINCT coalesce(m.key, '') FROM unnest(events, keys, dues, kept) AS m (event, key, due, kept)
            JOIN unnest(route_events, route_ordered) AS r (event, ordered) ON r.event = m.event AND r.ordered
            WHERE coalesce(m.kept, true) AND (m.due IS NULL OR m.due <= now_at)
        );
    END IF;
    IF cardinality(mailboxes) > 0 AND NOT frozen THEN
        IF EXISTS (SELECT 1 FROM beneath_delivery WHERE state = 3 AND due_at <= now_at) THEN
            WITH waiting AS MATERIALIZED (
                SELECT k.key, d.message_id FROM unnest(mailboxes) AS k (key) CROSS JOIN LATERAL (
                    SELECT t.message_id FROM beneath_delivery AS t
                    WHERE t.state - 3 = 0 AND t.mailbox = k.key AND t.due_at <= now_at
                    ORDER BY t.due_at, t.id LIMIT {FEW + 1}
                ) AS d LIMIT {MOST + 1}
            ), many AS MATERIALIZED (
                SELECT key FROM waiting GROUP BY key HAVING count(*) > {FEW}
            )
            SELECT
                CASE WHEN (SELECT count(*) FROM waiting) > {MOST} THEN mailboxes ELSE ARRAY(SELECT key FROM many) END,
                ARRAY(SELECT DISTINCT message_id FROM waiting WHERE key NOT IN (SELECT key FROM many))
            INTO crowded, earlier;
            IF cardinality(crowded) = cardinality(mailboxes) THEN
                earlier := '{{}}';
            END IF;
        END IF;
        IF cardinality(earlier) > 0 THEN
            PERFORM 1 FROM beneath_delivery WHERE id = ANY (ARRAY(
                SELECT d.first FROM unnest(earlier) AS m (id) CROSS JOIN LATERAL (
                    SELECT min(t.id) AS first FROM beneath_delivery AS t
                    WHERE t.state + 0 = 3 AND t.message_id = m.id AND t.due_at <= now_at
                ) AS d WHERE d.first IS NOT NULL
            )) ORDER BY id FOR UPDATE;
        END IF;
        PERFORM beneath_lock_keys_1(mailboxes);
        IF cardinality(earlier) > 0 THEN
            PERFORM beneath_place_2(earlier, now_at, true);
        END IF;
        IF cardinality(crowded) > 0 THEN
            SELECT array_agg(k.key), array_agg(coalesce((
                SELECT d.due_at FROM beneath_delivery AS d
                WHERE d.state - 3 = 0 AND d.mailbox = k.key AND d.due_at <= now_at + {SKEW}
                ORDER BY d.due_at DESC LIMIT 1
            ), now_at)) INTO crowded, crowded_until FROM unnest(crowded) AS k (key);
        END IF;
        first_number := nextval('beneath_number');
        INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, first_id)
        SELECT n.subscription, n.key, 0, n.due_at, nextval('beneath_number'), first_number FROM (
            SELECT r.subscription, coalesce(m.key, '') AS key, min(coalesce(m.due, now_at)) AS due_at
            FROM unnest(events, keys, dues, kept) WITH ORDINALITY AS m (event, key, due, kept, place)
            JOIN unnest(route_events, route_subscriptions, route_ordered) AS r (event, subscription, ordered)
                ON r.event = m.event AND r.ordered
            WHERE coalesce(m.kept, true) AND (m.due IS NULL OR m.due <= now_at)
                AND NOT coalesce(m.key, '') = ANY (crowded)
            GROUP BY 1, 2 ORDER BY min(m.place), 1
        ) AS n
        ON CONFLICT DO NOTHING;
    END IF;

    INSERT INTO beneath_delivery
        (subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
    SELECT r.subscription,
        CASE WHEN m.due > now_at THEN 3 WHEN NOT r.ordered THEN 0 WHEN frozen OR c.until IS NOT NULL THEN 3 ELSE 4 END,
        CASE WHEN m.due > now_at THEN m.due WHEN r.ordered AND frozen THEN 0
            WHEN r.ordered AND c.until IS NOT NULL THEN greatest(c.until, now_at) ELSE coalesce(m.due, now_at) END,
        m.published, m.id, m.event, m.key, CASE WHEN r.ordered THEN coalesce(m.key, '') END, m.body
    FROM unnest(ids, events, keys, dues, published, bodies, kept) WITH ORDINALITY
        AS m (id, event, key, due, published, body, kept, place)
    JOIN unnest(route_events, route_subscriptions, route_ordered) AS r (event, subscription, ordered)
        ON r.event = m.event
    LEFT JOIN unnest(crowded, crowded_until) AS c (key, until) ON c.key = coalesce(m.key, '')
    WHERE coalesce(m.kept, true) ORDER BY m.place, r.subscription;
    RETURN CASE WHEN cardinality(mailboxes) > 0 AND (frozen OR cardinality(crowded) > 0) THEN 1 ELSE 0 END;
END $$
"""

OLD_ARGUMENTS = """(
    ids text[], events text[], keys text[], dues double precision[], published double precision[], dedupes boolean[],
    bodies bytea[], now_at double precision, forgotten_at double precision,
    route_events text[], route_subscriptions bigint[], route_ordered boolean[], patience text
)"""

OLD_PUBLISH = f"""
-- The function of the previous release, redefined so that both releases store the same ids.
CREATE FUNCTION beneath_publish_1 {OLD_ARGUMENTS} RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    RETURN beneath_publish_2(
        ids, events, keys, dues, published, dedupes, bodies, now_at, forgotten_at, route_events, route_subscriptions,
        route_ordered, patience
    );
END $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    rename = "ALTER FUNCTION beneath_publish_1 RENAME TO beneath_publish_1_before_0008"
    for statement in (*INDEXES, PLACE, BURY, PROMOTE, PUBLISH, rename, OLD_PUBLISH):
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return
    bind.exec_driver_sql("DROP FUNCTION beneath_publish_1")
    bind.exec_driver_sql("ALTER FUNCTION beneath_publish_1_before_0008 RENAME TO beneath_publish_1")
    for name in ("publish", "promote", "bury_scheduled", "place"):
        bind.exec_driver_sql(f"DROP FUNCTION beneath_{name}_2")
    for statement in FORMER_INDEXES:
        bind.exec_driver_sql(statement)
