"""Functions with which workers claim and settle on PostgreSQL; 0004 explains the functions and their locks."""

# ruff: noqa: S608  # statements are put together from the constants below
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEYS = 1_650_812_528
"""The class of advisory locks for ordering keys, as in 0004."""

STRIPES = 1023
"""The bit mask for the stripes of ordering keys: their number less one."""

BYTES_AT_ONCE = 16 * 1024 * 1024
"""The size of bodies of a subscription, in bytes, after which a fetch gets no more of its claims."""

SUSPECT = 2
"""The number of takeovers from which a delivery is claimed alone."""

UNSURE = 0.05
"""Seconds after which a mailbox that may be empty is checked again."""

INDEXED = (
    "SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off "
    "SET enable_hashjoin = off SET enable_mergejoin = off"
)
"""Cached plans halve a call's time; one made for an empty table must not read the whole table later.

So a row of known number is searched with `state + 0 = ...`: with `state = ...` the planner may choose the partial index
of that state, which is equally good while that index is empty, and is read as a whole when it is not.
"""

CLOSE = f"""
-- Release mailboxes that the caller has locked, for any worker; delete those that are certainly empty. No delivery of a
-- mailbox comes before the one in `firsts`, or before the stored first number.
CREATE FUNCTION beneath_close_1(subscriptions bigint[], keys text[], firsts bigint[], now_at double precision)
RETURNS void
LANGUAGE plpgsql {INDEXED} AS $$
DECLARE
    sure boolean[];
BEGIN
    -- Without the shared lock another transaction may have added to the mailbox and not committed yet.
    sure := ARRAY(
        SELECT pg_try_advisory_xact_lock_shared({KEYS}, hashtext(k.key) & {STRIPES})
        FROM unnest(keys) WITH ORDINALITY AS k (key, place) ORDER BY k.place
    );
    WITH closed AS MATERIALIZED (
        SELECT m.subscription, m.ordering_key AS key, greatest(m.first_id, c.first) AS first, c.sure, EXISTS (
            SELECT 1 FROM beneath_delivery AS d
            WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key
                AND (d.subscription, d.mailbox, d.id) >= (m.subscription, m.ordering_key, greatest(m.first_id, c.first))
        ) AS filled
        FROM unnest(subscriptions, keys, firsts, sure) AS c (subscription, key, first, sure)
        JOIN beneath_mailbox AS m ON m.subscription = c.subscription AND m.ordering_key = c.key
    ), dropped AS (
        DELETE FROM beneath_mailbox AS m USING closed AS c
        WHERE m.subscription = c.subscription AND m.ordering_key = c.key AND c.sure AND NOT c.filled
    )
    UPDATE beneath_mailbox AS m SET state = 0, due_at = CASE WHEN c.filled THEN now_at ELSE now_at + {UNSURE} END,
        turn = nextval('beneath_number'), owner = NULL, first_id = c.first, last_id = NULL, parked_event = NULL
    FROM closed AS c
    WHERE m.subscription = c.subscription AND m.ordering_key = c.key AND (c.filled OR NOT c.sure);
END $$
"""

CLAIM = f"""
-- Returns a row for each delivery; those of a mailbox have its fence, due time and turn. Deliveries due before their
-- subscription's time in `starts` are omitted.
CREATE FUNCTION beneath_claim_1(
    worker bigint, names text[], limits integer[], starts double precision[], batch integer, now_at double precision
) RETURNS TABLE (
    name text, fence bigint, place_at double precision, place bigint, id bigint, message_id text, event text,
    ordering_key text, mailbox text, body bytea, published_at double precision, failures integer, deferrals integer,
    takeovers integer, crashes integer
) LANGUAGE plpgsql {INDEXED} AS $$
#variable_conflict use_column
DECLARE
    wanted_names text[];
    wanted bigint[];
    wanted_limits integer[];
    wanted_starts double precision[];
    any_ordered boolean;
    any_unordered boolean;
    held_names text[];
    held bigint[];
    held_keys text[];
    held_at double precision[];
    held_turns bigint[];
    held_firsts bigint[];
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'beneath_claim needs READ COMMITTED';
    END IF;
    -- The row lock prevents a takeover of this worker during the claim.
    PERFORM 1 FROM beneath_worker AS w WHERE w.id = worker FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this worker was taken for dead' USING ERRCODE = 'BN001';
    END IF;
    IF EXISTS (SELECT 1 FROM beneath_delivery AS d WHERE d.state = 3 AND d.due_at <= now_at) THEN
        BEGIN
            PERFORM beneath_promote_1(now_at, 200, NULL);
        EXCEPTION WHEN lock_not_available THEN
            PERFORM beneath_promote_singly_1(now_at);
        END;
    END IF;

    SELECT array_agg(w.name), array_agg(s.id), array_agg(w.most), array_agg(w.start), bool_or(s.ordered = 1),
        bool_or(s.ordered = 0)
    INTO wanted_names, wanted, wanted_limits, wanted_starts, any_ordered, any_unordered
    FROM unnest(names, limits, starts) AS w (name, most, start)
    CROSS JOIN LATERAL (
        SELECT t.id, t.ordered, t.paused FROM beneath_subscription AS t WHERE t.name = w.name
        UNION ALL
        SELECT t.id, t.ordered, t.paused FROM beneath_alias AS a
        JOIN beneath_subscription AS t ON t.id = a.subscription WHERE a.name = w.name
    ) AS s
    WHERE s.paused = 0;

    IF any_unordered THEN
        RETURN QUERY
        WITH locked AS MATERIALIZED (
            SELECT w.name, d.id, d.due_at, d.size
            FROM unnest(wanted_names, wanted, wanted_limits, wanted_starts) AS w (name, subscription, most, start)
            CROSS JOIN LATERAL (
                SELECT t.id, t.due_at, octet_length(t.body) AS size FROM beneath_delivery AS t
                WHERE t.state = 0 AND t.subscription = w.subscription AND t.due_at >= w.start AND t.due_at <= now_at
                ORDER BY t.due_at, t.id LIMIT w.most FOR UPDATE SKIP LOCKED
            ) AS d
        ), fitting AS MATERIALIZED (
            SELECT l.name, l.id, l.due_at,
                sum(l.size) OVER (PARTITION BY l.name ORDER BY l.due_at, l.id) - l.size AS before
            FROM locked AS l
        )
        UPDATE beneath_delivery AS d SET state = 1, owner = worker FROM fitting AS f
        WHERE d.id = f.id AND f.before <= {BYTES_AT_ONCE}
        RETURNING f.name, 0::bigint, f.due_at, d.id, d.id, d.message_id, d.event, d.ordering_key, NULL::text, d.body,
            d.published_at, d.failures, d.deferrals, d.takeovers, d.crashes;
    END IF;
    IF NOT coalesce(any_ordered, false) THEN
        RETURN;
    END IF;

    SELECT array_agg(w.name), array_agg(m.subscription), array_agg(m.ordering_key), array_agg(m.due_at),
        array_agg(m.turn), array_agg(m.first_id)
    INTO held_names, held, held_keys, held_at, held_turns, held_firsts
    FROM unnest(wanted_names, wanted, wanted_limits, wanted_starts) AS w (name, subscription, most, start)
    CROSS JOIN LATERAL (
        SELECT t.subscription, t.ordering_key, t.due_at, t.turn, t.first_id FROM beneath_mailbox AS t
        WHERE t.state = 0 AND t.subscription = w.subscription AND t.due_at >= w.start AND t.due_at <= now_at
        ORDER BY t.due_at, t.turn LIMIT w.most FOR UPDATE SKIP LOCKED
    ) AS m;
    IF held IS NULL THEN
        RETURN;
    END IF;
    -- A new statement, so that it sees all deliveries added before the locks were acquired.
    RETURN QUERY
    WITH heads AS MATERIALIZED (
        SELECT h.name, h.subscription, h.key, h.due_at, h.turn, d.id, d.takeovers, octet_length(d.body) AS size,
            row_number() OVER mine AS nth, coalesce(bool_or(d.takeovers >= {SUSPECT}) OVER mine, false) AS suspects
        FROM unnest(held_names, held, held_keys, held_at, held_turns, held_firsts)
            AS h (name, subscription, key, due_at, turn, first_id)
        CROSS JOIN LATERAL (
            SELECT t.id, t.takeovers, t.body FROM beneath_delivery AS t
            WHERE t.state = 4 AND t.subscription = h.subscription AND t.mailbox = h.key
                AND (t.subscription, t.mailbox, t.id) >= (h.subscription, h.key, h.first_id)
            ORDER BY t.id LIMIT batch
        ) AS d
        WINDOW mine AS (PARTITION BY h.subscription, h.key ORDER BY d.id)
    ), fitting AS MATERIALIZED (
        SELECT h.*, sum(h.size) OVER (PARTITION BY h.name ORDER BY h.due_at, h.turn, h.id) - h.size AS before
        FROM heads AS h WHERE h.nth = 1 OR NOT h.suspects
    ), handed AS MATERIALIZED (
        SELECT f.* FROM fitting AS f WHERE f.before <= {BYTES_AT_ONCE}
    ), claimed AS (
        UPDATE beneath_mailbox AS m
        SET state = 1, owner = worker, fence = nextval('beneath_number'), last_id = l.last_id
        FROM (SELECT g.subscription, g.key, max(g.id) AS last_id FROM handed AS g GROUP BY 1, 2) AS l
        WHERE m.subscription = l.subscription AND m.ordering_key = l.key
        RETURNING m.subscription, m.ordering_key, m.fence
    )
    SELECT g.name, c.fence, g.due_at, g.turn, d.id, d.message_id, d.event, d.ordering_key, g.key, d.body,
        d.published_at, d.failures, d.deferrals, d.takeovers, d.crashes
    FROM handed AS g
    JOIN claimed AS c ON c.subscription = g.subscription AND c.ordering_key = g.key
    JOIN beneath_delivery AS d ON d.id = g.id;

    SELECT array_agg(h.subscription), array_agg(h.key), array_agg(h.first_id) INTO held, held_keys, held_firsts
    FROM unnest(held, held_keys, held_firsts) AS h (subscription, key, first_id)
    WHERE (
        SELECT d.id FROM beneath_delivery AS d
        WHERE d.state = 4 AND d.subscription = h.subscription AND d.mailbox = h.key
            AND (d.subscription, d.mailbox, d.id) >= (h.subscription, h.key, h.first_id) LIMIT 1
    ) IS NULL;
    IF held IS NOT NULL THEN
        PERFORM beneath_close_1(held, held_keys, held_firsts, now_at);
    END IF;
END $$
"""

SETTLE = f"""
-- Ends claims. `done` are unordered deliveries to delete, of any owner. `names`, `keys` and `fences` are the claimed
-- mailboxes, and `closing` tells which of them to release. Each further settlement belongs to the mailbox at `places`
-- (0: unordered), and its kind is 0 (delete), 1 (dead letter) or 2 (keep, with `states` as the new state of the
-- unordered delivery or else of the mailbox). Returns the positions, from 1, of settlements that had an effect; the
-- others were fenced.
CREATE FUNCTION beneath_settle_1(
    worker bigint, now_at double precision, done bigint[],
    names text[], keys text[], fences bigint[], closing boolean[],
    places integer[], ids bigint[], kinds integer[], states integer[], failed integer[], deferred integer[],
    delays double precision[], errors text[], traces text[]
) RETURNS integer[] LANGUAGE plpgsql {INDEXED} AS $$
DECLARE
    held bigint[];
    held_keys text[];
    held_last bigint[];
    held_places integer[];
    held_firsts bigint[];
    effective integer[];
    staying bigint[];
    staying_keys text[];
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'beneath_settle needs READ COMMITTED';
    END IF;
    SELECT array_agg(h.subscription), array_agg(h.ordering_key), array_agg(h.last_id), array_agg(h.place)
    INTO held, held_keys, held_last, held_places
    FROM (
        SELECT m.subscription, m.ordering_key, m.last_id, c.place::integer AS place
        FROM (
            SELECT s.id, w.key, w.fence, w.place
            FROM unnest(names, keys, fences) WITH ORDINALITY AS w (name, key, fence, place)
            CROSS JOIN LATERAL (
                SELECT t.id FROM beneath_subscription AS t WHERE t.name = w.name
                UNION ALL SELECT a.subscription FROM beneath_alias AS a WHERE a.name = w.name
            ) AS s
            ORDER BY s.id, w.key COLLATE "C"
        ) AS c
        CROSS JOIN LATERAL (
            SELECT t.subscription, t.ordering_key, t.last_id FROM beneath_mailbox AS t
            WHERE t.subscription = c.id AND t.ordering_key = c.key
                AND t.state + 0 = 1 AND t.owner = worker AND t.fence = c.fence FOR UPDATE
        ) AS m
    ) AS h;

    effective := ARRAY(
        SELECT e.nth::integer FROM unnest(places, ids) WITH ORDINALITY AS e (place, id, nth)
        JOIN unnest(held_places, held, held_keys, held_last) AS h (place, subscription, key, last_id)
            ON h.place = e.place
        JOIN beneath_delivery AS d ON d.id = e.id AND d.state + 0 = 4 AND d.subscription = h.subscription
            AND d.mailbox = h.key AND d.id <= h.last_id
    ) || ARRAY(
        SELECT e.nth::integer FROM unnest(places, ids) WITH ORDINALITY AS e (place, id, nth)
        JOIN beneath_delivery AS d ON d.id = e.id AND d.state + 0 = 1 AND d.owner = worker
        WHERE e.place = 0 ORDER BY d.id FOR UPDATE OF d
    );

    DELETE FROM beneath_delivery
    WHERE id = ANY (done || ARRAY(SELECT ids[nth] FROM unnest(effective) AS nth WHERE kinds[nth] = 0));
    WITH ended AS MATERIALIZED (
        SELECT ids[nth] AS id, errors[nth] AS error, traces[nth] AS trace, failed[nth] AS failed, nth
        FROM unnest(effective) AS nth WHERE kinds[nth] = 1
    ), gone AS (
        DELETE FROM beneath_delivery AS d USING ended AS e WHERE d.id = e.id
        RETURNING d.*, e.error, e.trace, e.failed, e.nth
    )
    INSERT INTO beneath_dead_letter (
        subscription, message_id, event, ordering_key, error, traceback, failures, crashes, published_at, died_at, body
    )
    SELECT s.name, g.message_id, g.event, g.ordering_key, coalesce(g.error, g.last_error, ''),
        coalesce(g.trace, g.last_traceback, ''), g.failures + g.failed, g.crashes, g.published_at, now_at, g.body
    FROM gone AS g JOIN beneath_subscription AS s ON s.id = g.subscription ORDER BY g.nth;

    UPDATE beneath_delivery AS d SET
        state = CASE WHEN places[e.nth] = 0 THEN states[e.nth] ELSE 4 END, owner = NULL, isolated = 0,
        failures = d.failures + failed[e.nth], deferrals = d.deferrals + deferred[e.nth],
        due_at = CASE WHEN delays[e.nth] > 0 THEN now_at + delays[e.nth] ELSE d.due_at END,
        last_error = coalesce(errors[e.nth], d.last_error), last_traceback = coalesce(traces[e.nth], d.last_traceback)
    FROM unnest(effective) AS e (nth) WHERE kinds[e.nth] = 2 AND d.id = ids[e.nth];

    IF held IS NULL THEN
        RETURN effective;
    END IF;

    WITH returned AS (
        UPDATE beneath_mailbox AS m SET state = states[e.nth], due_at = now_at + greatest(delays[e.nth], 0),
            turn = nextval('beneath_number'), owner = NULL, last_id = NULL,
            parked_event = CASE WHEN states[e.nth] = 2 THEN d.event END
        FROM unnest(effective) AS e (nth) JOIN beneath_delivery AS d ON d.id = ids[e.nth]
        WHERE kinds[e.nth] = 2 AND places[e.nth] > 0 AND m.subscription = d.subscription AND m.ordering_key = d.mailbox
        RETURNING m.subscription, m.ordering_key
    )
    SELECT array_agg(r.subscription), array_agg(r.ordering_key) INTO staying, staying_keys FROM returned AS r;

    -- Deliveries end in their order, so the last deleted one was the head.
    SELECT array_agg(h.subscription), array_agg(h.key), array_agg((
        SELECT max(ids[nth]) FROM unnest(effective) AS nth WHERE places[nth] = h.place AND kinds[nth] < 2
    ))
    INTO held, held_keys, held_firsts
    FROM unnest(held, held_keys, held_places) AS h (subscription, key, place)
    WHERE closing[h.place] AND NOT EXISTS (
        SELECT 1 FROM unnest(staying, staying_keys) AS s (subscription, key)
        WHERE s.subscription = h.subscription AND s.key = h.key
    );
    IF held IS NOT NULL THEN
        PERFORM beneath_close_1(held, held_keys, held_firsts, now_at);
    END IF;
    RETURN effective;
END $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for statement in (CLOSE, CLAIM, SETTLE):
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for name in ("settle", "claim", "close"):
        op.get_bind().exec_driver_sql(f"DROP FUNCTION beneath_{name}_1")
