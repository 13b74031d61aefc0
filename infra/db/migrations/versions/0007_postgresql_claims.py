"""Functions with which workers claim and settle on PostgreSQL: claims have an epoch and a fence, steps are bounded.

When the answer to a claim is lost or its caller is cancelled, the worker raises its epoch; the claim is void if it
reaches the server later. Scheduled messages are not promoted inside a claim any more, but in separate steps, which a
row without a name requests. The rules of 0005 for locks and plans apply here too; its functions serve the previous
release.
"""

# ruff: noqa: S608  # statements are put together from the constants below
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SUSPECT = 2
"""The number of takeovers from which a delivery is claimed alone."""

RETIRED = "its subscription was retired"
"""The error of dead letters whose delivery had none."""

INDEXED = (
    "SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off "
    "SET enable_hashjoin = off SET enable_mergejoin = off"
)
"""Plans are cached; one made for an empty table must not read the whole table later. See 0005."""

BUSY = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0"

TABLES = (
    """
    ALTER TABLE beneath_worker ADD COLUMN epoch bigint NOT NULL DEFAULT 0
    """,
    """
    ALTER TABLE beneath_accepted ALTER COLUMN event TYPE text COLLATE "C", ALTER COLUMN id TYPE text COLLATE "C"
    """,
    f"""
    ALTER TABLE beneath_accepted SET ({BUSY})
    """,
    """
    CREATE INDEX beneath_delivery_scheduled_subscription ON beneath_delivery (subscription, id) WHERE state = 3
    """,
)

CLAIM = f"""
-- Returns a row for each delivery; those of a mailbox have its due time and turn. A row without a name means that
-- scheduled messages are due. Bodies beyond the first add up to at most `bytes`. Deliveries due before their
-- subscription's time in `starts`, and messages due before `scheduled_start`, are omitted. Retired deliveries are
-- removed instead of returned.
CREATE FUNCTION beneath_claim_2(
    worker bigint, its_epoch bigint, names text[], limits integer[], starts double precision[],
    scheduled_start double precision, batch integer, bytes bigint, now_at double precision
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
    claimed_names text[];
    claimed bigint[];
    claimed_at double precision[];
    number CONSTANT bigint := nextval('beneath_number');
    retiring CONSTANT boolean := EXISTS (SELECT 1 FROM beneath_retirement WHERE subscription > 0);
    -- The bytes that still fit, and whether no delivery has been claimed yet: the first one may have any size.
    room bigint;
    used bigint := 0;
    nothing boolean := true;
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
    -- The row lock prevents a takeover of this worker, and that it leaves, during the claim.
    PERFORM 1 FROM beneath_worker AS w
    WHERE w.id = worker AND w.epoch = its_epoch AND w.lease_until > 0 FOR KEY SHARE;
    IF NOT FOUND THEN
        IF EXISTS (SELECT 1 FROM beneath_worker AS w WHERE w.id = worker AND w.lease_until > 0) THEN
            RAISE EXCEPTION 'this claim was given up before it arrived' USING ERRCODE = 'BN002';
        END IF;
        RAISE EXCEPTION 'this worker was taken for dead' USING ERRCODE = 'BN001';
    END IF;
    IF EXISTS (
        SELECT 1 FROM beneath_delivery AS d
        WHERE d.state = 3 AND d.due_at >= scheduled_start AND d.due_at <= now_at
    ) THEN
        RETURN NEXT;
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
        room := CASE WHEN any_ordered THEN bytes / 2 ELSE bytes END;
        WITH locked AS MATERIALIZED (
            SELECT w.name, d.id, d.due_at, d.size
            FROM unnest(wanted_names, wanted, wanted_limits, wanted_starts) AS w (name, subscription, most, start)
            CROSS JOIN LATERAL (
                SELECT t.id, t.due_at, octet_length(t.body) AS size FROM beneath_delivery AS t
                WHERE t.state = 0 AND t.subscription = w.subscription AND t.due_at >= w.start AND t.due_at <= now_at
                ORDER BY t.due_at, t.id LIMIT w.most FOR UPDATE SKIP LOCKED
            ) AS d
        ), measured AS MATERIALIZED (
            SELECT l.name, l.id, l.due_at,
                sum(l.size) OVER in_order - first_value(l.size) OVER in_order AS beyond
            FROM locked AS l WINDOW in_order AS (ORDER BY l.due_at, l.id)
        )
        SELECT array_agg(m.name), array_agg(m.id), array_agg(m.due_at), coalesce(max(m.beyond), 0), count(*) = 0
        INTO claimed_names, claimed, claimed_at, used, nothing
        FROM measured AS m WHERE m.beyond <= room;
        IF retiring THEN
            PERFORM beneath_remove_retired_2(claimed, now_at);
        END IF;
        RETURN QUERY
        UPDATE beneath_delivery AS d SET state = 1, owner = worker, fence = number
        FROM unnest(claimed_names, claimed, claimed_at) AS c (name, id, due_at)
        WHERE d.id = c.id
        RETURNING c.name, number, c.due_at, d.id, d.id, d.message_id, d.event, d.ordering_key, NULL::text, d.body,
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
    IF retiring THEN
        PERFORM beneath_remove_retired_2(ARRAY(
            SELECT d.id FROM unnest(held, held_keys, held_firsts) AS h (subscription, key, first_id)
            CROSS JOIN LATERAL (
                SELECT t.id FROM beneath_delivery AS t
                WHERE t.state = 4 AND t.subscription = h.subscription AND t.mailbox = h.key
                    AND (t.subscription, t.mailbox, t.id) >= (h.subscription, h.key, h.first_id)
                ORDER BY t.id LIMIT batch
            ) AS d
        ), now_at);
    END IF;
    -- A new statement, so that it sees all deliveries added before the locks were acquired.
    RETURN QUERY
    WITH heads AS MATERIALIZED (
        SELECT h.name, h.subscription, h.key, h.due_at, h.turn, d.id, d.takeovers, octet_length(d.body) AS size,
            row_number() OVER mine AS nth, coalesce(bool_or(d.takeovers >= {SUSPECT}) OVER mine, false) AS suspects,
            -- The remaining deliveries of a retired event are removed by the next claims, before later deliveries.
            bool_or(retiring AND EXISTS (
                SELECT 1 FROM beneath_retirement AS r WHERE r.subscription = h.subscription AND r.event = d.event
            )) OVER mine AS held_up
        FROM unnest(held_names, held, held_keys, held_at, held_turns, held_firsts)
            AS h (name, subscription, key, due_at, turn, first_id)
        CROSS JOIN LATERAL (
            SELECT t.id, t.takeovers, t.body, t.event FROM beneath_delivery AS t
            WHERE t.state = 4 AND t.subscription = h.subscription AND t.mailbox = h.key
                AND (t.subscription, t.mailbox, t.id) >= (h.subscription, h.key, h.first_id)
            ORDER BY t.id LIMIT batch
        ) AS d
        WINDOW mine AS (PARTITION BY h.subscription, h.key ORDER BY d.id)
    ), measured AS MATERIALIZED (
        SELECT h.*, used + sum(h.size) OVER in_order
            - CASE WHEN nothing THEN first_value(h.size) OVER in_order ELSE 0 END AS beyond
        FROM heads AS h WHERE (h.nth = 1 OR NOT h.suspects) AND NOT h.held_up
        WINDOW in_order AS (ORDER BY h.due_at, h.turn, h.id)
    ), handed AS MATERIALIZED (
        SELECT m.* FROM measured AS m WHERE m.beyond <= bytes
    ), claimed AS (
        UPDATE beneath_mailbox AS m
        SET state = 1, owner = worker, fence = nextval('beneath_number'), last_id = l.last_id
        FROM (SELECT g.subscription, g.key, max(g.id) AS last_id FROM handed AS g GROUP BY 1, 2) AS l
        WHERE m.subscription = l.subscription AND m.ordering_key = l.key
        RETURNING m.subscription, m.ordering_key, m.fence, l.last_id
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

REMOVE_RETIRED = f"""
-- Delete the given deliveries whose event is being retired from their subscription, or turn them into dead letters.
CREATE FUNCTION beneath_remove_retired_2(ids bigint[], now_at double precision) RETURNS void LANGUAGE plpgsql {INDEXED}
AS $$
BEGIN
    WITH going AS MATERIALIZED (
        SELECT d.id, r.backlog FROM beneath_delivery AS d CROSS JOIN LATERAL (
            SELECT t.backlog FROM beneath_retirement AS t WHERE t.subscription = d.subscription AND t.event = d.event
        ) AS r WHERE d.id = ANY (ids)
    ), gone AS (
        DELETE FROM beneath_delivery AS d WHERE d.id = ANY (ARRAY(SELECT id FROM going)) RETURNING d.*
    )
    INSERT INTO beneath_dead_letter (
        subscription, message_id, event, ordering_key, error, traceback, failures, crashes, published_at, died_at, body
    )
    SELECT s.name, g.message_id, g.event, g.ordering_key, coalesce(g.last_error, '{RETIRED}'),
        coalesce(g.last_traceback, ''), g.failures, g.crashes, g.published_at, now_at, g.body
    FROM gone AS g JOIN going AS i ON i.id = g.id JOIN beneath_subscription AS s ON s.id = g.subscription
    WHERE i.backlog = 'dead' ORDER BY g.id;
END $$
"""

SETTLE = f"""
-- Ends claims. `done` are unordered deliveries to delete, of any owner. `names`, `keys` and `fences` are the claimed
-- mailboxes, and `closing` tells which of them to release. Each further settlement belongs to the mailbox at `places`
-- (0: an unordered delivery, with its fence in `claims`), and its kind is 0 (delete), 1 (dead letter) or 2 (keep, with
-- `states` as the new state of the unordered delivery or else of the mailbox). Returns the positions, from 1, of
-- settlements that had an effect; the others were fenced. Arrays are read by subscript, because joining them without
-- hash joins takes quadratic time.
CREATE FUNCTION beneath_settle_2(
    worker bigint, now_at double precision, done bigint[],
    names text[], keys text[], fences bigint[], closing boolean[],
    places integer[], ids bigint[], claims bigint[], kinds integer[], states integer[], failed integer[],
    deferred integer[], delays double precision[], errors text[], traces text[], needed text[]
) RETURNS integer[] LANGUAGE plpgsql {INDEXED} AS $$
DECLARE
    held bigint[] := '{{}}';
    held_keys text[] := '{{}}';
    held_last bigint[] := '{{}}';
    held_first bigint[] := '{{}}';
    staying boolean[] := '{{}}';
    effective integer[];
    over bigint[] := done;
    closed bigint[] := '{{}}';
    closed_keys text[] := '{{}}';
    closed_firsts bigint[] := '{{}}';
    it record;
    nth integer;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'beneath_settle needs READ COMMITTED';
    END IF;
    FOR it IN
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
    LOOP
        held[it.place] := it.subscription;
        held_keys[it.place] := it.ordering_key;
        held_last[it.place] := it.last_id;
    END LOOP;

    effective := ARRAY(
        SELECT e.nth::integer FROM unnest(places, ids) WITH ORDINALITY AS e (place, id, nth)
        JOIN beneath_delivery AS d ON d.id = e.id AND d.state + 0 = 4 AND d.subscription = held[e.place]
            AND d.mailbox = held_keys[e.place] AND d.id <= held_last[e.place]
        WHERE e.place > 0
    ) || ARRAY(
        SELECT e.nth::integer FROM unnest(places, ids, claims) WITH ORDINALITY AS e (place, id, fence, nth)
        JOIN beneath_delivery AS d ON d.id = e.id AND d.state + 0 = 1 AND d.owner = worker AND d.fence = e.fence
        WHERE e.place = 0 ORDER BY d.id FOR UPDATE OF d
    );
    FOREACH nth IN ARRAY effective LOOP
        IF kinds[nth] = 0 THEN
            over := over || ids[nth];
        END IF;
        -- Deliveries end in their order, so the last deleted one was the head.
        IF kinds[nth] < 2 AND places[nth] > 0 THEN
            held_first[places[nth]] := greatest(held_first[places[nth]], ids[nth]);
        END IF;
    END LOOP;

    DELETE FROM beneath_delivery WHERE id = ANY (over);
    WITH ended AS MATERIALIZED (
        SELECT ids[e] AS id, errors[e] AS error, traces[e] AS trace, failed[e] AS failed, e AS nth
        FROM unnest(effective) AS e WHERE kinds[e] = 1
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
        state = CASE WHEN places[e] = 0 THEN states[e] ELSE 4 END, owner = NULL, isolated = 0,
        failures = d.failures + failed[e], deferrals = d.deferrals + deferred[e],
        due_at = CASE WHEN delays[e] > 0 THEN now_at + delays[e] ELSE d.due_at END, needs = needed[e],
        last_error = coalesce(errors[e], d.last_error), last_traceback = coalesce(traces[e], d.last_traceback)
    FROM unnest(effective) AS e WHERE kinds[e] = 2 AND d.id = ids[e];

    FOR it IN
        UPDATE beneath_mailbox AS m SET state = states[e], due_at = now_at + greatest(delays[e], 0),
            turn = nextval('beneath_number'), owner = NULL, last_id = NULL,
            parked_event = CASE WHEN states[e] = 2 THEN coalesce(needed[e], d.event) END
        FROM unnest(effective) AS e JOIN beneath_delivery AS d ON d.id = ids[e]
        WHERE kinds[e] = 2 AND places[e] > 0 AND m.subscription = d.subscription AND m.ordering_key = d.mailbox
        RETURNING places[e] AS place
    LOOP
        staying[it.place] := true;
    END LOOP;
    FOR nth IN 1 .. cardinality(fences) LOOP
        IF closing[nth] AND held[nth] IS NOT NULL AND staying[nth] IS NULL THEN
            closed := closed || held[nth];
            closed_keys := closed_keys || held_keys[nth];
            closed_firsts := closed_firsts || held_first[nth];
        END IF;
    END LOOP;
    IF cardinality(closed) > 0 THEN
        PERFORM beneath_close_1(closed, closed_keys, closed_firsts, now_at);
    END IF;
    RETURN effective;
END $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for statement in (*TABLES, REMOVE_RETIRED, CLAIM, SETTLE):
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return
    for name in ("settle", "claim", "remove_retired"):
        bind.exec_driver_sql(f"DROP FUNCTION beneath_{name}_2")
    bind.exec_driver_sql("DROP INDEX beneath_delivery_scheduled_subscription")
    bind.exec_driver_sql("ALTER TABLE beneath_worker DROP COLUMN epoch")
