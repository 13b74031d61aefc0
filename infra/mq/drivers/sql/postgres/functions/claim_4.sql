-- Claim due deliveries. Returns a row for each delivery; those of a mailbox have its due time and turn. A row without a
-- name means that scheduled messages are due: workers promote these in separate steps. Bodies beyond the first add up
-- to at most `bytes`. A claim on a mailbox has its first `batch` deliveries. If fewer mailboxes are due than wanted, it
-- has up to `longest`, and all claims of a subscription together have at most `batch` for each wanted mailbox.
-- Deliveries due before their subscription's time in `starts`, and messages due before `scheduled_start`, are omitted.
-- Retired deliveries are removed instead of returned. A delivery with `suspect_after` takeovers is claimed alone.
--
-- When the answer is lost or the caller is cancelled, the worker raises its epoch; the claim is void if it reaches the
-- server later.
CREATE FUNCTION beneath_claim_4(
    worker bigint, its_epoch bigint, names text[], limits integer[], starts double precision[],
    scheduled_start double precision, batch integer, longest integer, bytes bigint, suspect_after integer,
    now_at double precision
) RETURNS TABLE (
    name text, fence bigint, place_at double precision, place bigint, id bigint, message_id text, event text,
    ordering_key text, mailbox text, body bytea, published_at double precision, failures integer, deferrals integer,
    takeovers integer, crashes integer
) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
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
    claimed_spots tid[];
    claimed_sizes integer[];
    held_names text[];
    held bigint[];
    held_keys text[];
    held_at double precision[];
    held_turns bigint[];
    held_firsts bigint[];
    held_spots tid[];
    held_fences bigint[];
    runs integer[];
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
        SELECT array_agg(l.name), array_agg(l.spot), array_agg(l.id), array_agg(l.due_at), array_agg(l.size),
            coalesce(sum(l.size), 0), count(*) = 0
        INTO claimed_names, claimed_spots, claimed, claimed_at, claimed_sizes, used, nothing
        FROM (
            SELECT w.name, d.spot, d.id, d.due_at, d.size
            FROM unnest(wanted_names, wanted, wanted_limits, wanted_starts) AS w (name, subscription, most, start)
            CROSS JOIN LATERAL (
                SELECT t.ctid AS spot, t.id, t.due_at, octet_length(t.body) AS size FROM beneath_delivery AS t
                WHERE t.state = 0 AND t.subscription = w.subscription AND t.due_at >= w.start AND t.due_at <= now_at
                ORDER BY t.due_at, t.id LIMIT w.most FOR UPDATE SKIP LOCKED
            ) AS d
        ) AS l;
        room := CASE WHEN any_ordered THEN bytes / 2 ELSE bytes END;
        IF used > room THEN
            SELECT array_agg(m.name), array_agg(m.spot), array_agg(m.id), array_agg(m.due_at), max(m.beyond)
            INTO claimed_names, claimed_spots, claimed, claimed_at, used
            FROM (
                SELECT l.*, sum(l.size) OVER in_order - first_value(l.size) OVER in_order AS beyond
                FROM unnest(claimed_names, claimed_spots, claimed, claimed_at, claimed_sizes)
                    AS l (name, spot, id, due_at, size)
                WINDOW in_order AS (ORDER BY l.due_at, l.id)
            ) AS m WHERE m.beyond <= room;
        END IF;
        IF retiring THEN
            PERFORM beneath_remove_retired_2(claimed, now_at);
        END IF;
        RETURN QUERY
        UPDATE beneath_delivery AS d SET state = 1, owner = worker, fence = number
        FROM unnest(claimed_names, claimed_spots, claimed_at) AS c (name, spot, due_at)
        WHERE d.ctid = c.spot
        RETURNING c.name, number, c.due_at, d.id, d.id, d.message_id, d.event, d.ordering_key, NULL::text, d.body,
            d.published_at, d.failures, d.deferrals, d.takeovers, d.crashes;
    END IF;
    IF NOT coalesce(any_ordered, false) THEN
        RETURN;
    END IF;

    SELECT array_agg(l.name), array_agg(l.subscription), array_agg(l.ordering_key), array_agg(l.due_at),
        array_agg(l.turn), array_agg(l.first_id), array_agg(l.spot), array_agg(nextval('beneath_number')),
        array_agg(l.run)
    INTO held_names, held, held_keys, held_at, held_turns, held_firsts, held_spots, held_fences, runs
    FROM (
        SELECT w.name, m.*, least(longest, batch * w.most / count(*) OVER (PARTITION BY w.subscription))::integer AS run
        FROM unnest(wanted_names, wanted, wanted_limits, wanted_starts) AS w (name, subscription, most, start)
        CROSS JOIN LATERAL (
            SELECT t.ctid AS spot, t.subscription, t.ordering_key, t.due_at, t.turn, t.first_id
            FROM beneath_mailbox AS t
            WHERE t.state = 0 AND t.subscription = w.subscription AND t.due_at >= w.start AND t.due_at <= now_at
            ORDER BY t.due_at, t.turn LIMIT w.most FOR UPDATE SKIP LOCKED
        ) AS m ORDER BY m.due_at, m.turn
    ) AS l;
    IF held IS NULL THEN
        RETURN;
    END IF;
    IF retiring THEN
        PERFORM beneath_remove_retired_2(ARRAY(
            SELECT d.id FROM unnest(held, held_keys, held_firsts, runs) AS h (subscription, key, first_id, run)
            CROSS JOIN LATERAL (
                SELECT t.id FROM beneath_delivery AS t
                WHERE t.state = 4 AND t.subscription = h.subscription AND t.mailbox = h.key
                    AND (t.subscription, t.mailbox, t.id) >= (h.subscription, h.key, h.first_id)
                ORDER BY t.id LIMIT h.run
            ) AS d
        ), now_at);
    END IF;
    -- A new statement, so that it sees all deliveries added before the locks were acquired. Results are joined by `ctid`
    -- and by subscript alone: without hash joins, other joins of them would take quadratic time.
    RETURN QUERY
    WITH heads AS MATERIALIZED (
        SELECT h.place, d.spot, d.id, d.size, row_number() OVER mine AS nth, sum(d.size) OVER mine AS its_bytes,
            bool_or(d.takeovers >= suspect_after) OVER mine AS suspects,
            -- The remaining deliveries of a retired event are removed by the next claims, before later deliveries.
            bool_or(retiring AND EXISTS (
                SELECT 1 FROM beneath_retirement AS r WHERE r.subscription = h.subscription AND r.event = d.event
            )) OVER mine AS held_up
        FROM unnest(held, held_keys, held_firsts, runs) WITH ORDINALITY
            AS h (subscription, key, first_id, run, place)
        CROSS JOIN LATERAL (
            SELECT t.ctid AS spot, t.id, t.takeovers, t.event, octet_length(t.body) AS size FROM beneath_delivery AS t
            WHERE t.state = 4 AND t.subscription = h.subscription AND t.mailbox = h.key
                AND (t.subscription, t.mailbox, t.id) >= (h.subscription, h.key, h.first_id)
            ORDER BY t.id LIMIT h.run
        ) AS d
        WINDOW mine AS (PARTITION BY h.place ORDER BY d.id)
    ), measured AS MATERIALIZED (
        SELECT h.place, h.spot, h.id, used + sum(h.size) OVER in_order
            - CASE WHEN nothing THEN first_value(h.size) OVER in_order ELSE 0 END AS beyond
        FROM heads AS h
        WHERE (h.nth = 1 OR NOT h.suspects) AND NOT h.held_up
            AND (h.nth <= batch OR h.its_bytes <= bytes / cardinality(held))
        WINDOW in_order AS (ORDER BY h.place, h.id)
    ), handed AS MATERIALIZED (
        SELECT m.* FROM measured AS m WHERE m.beyond <= bytes
    ), claimed AS (
        UPDATE beneath_mailbox AS m SET state = 1, owner = worker, fence = held_fences[l.place], last_id = l.last_id
        FROM (SELECT g.place, max(g.id) AS last_id FROM handed AS g GROUP BY g.place) AS l
        WHERE m.ctid = held_spots[l.place]
    )
    SELECT held_names[g.place], held_fences[g.place], held_at[g.place], held_turns[g.place], d.id, d.message_id,
        d.event, d.ordering_key, d.mailbox, d.body, d.published_at, d.failures, d.deferrals, d.takeovers, d.crashes
    FROM handed AS g JOIN beneath_delivery AS d ON d.ctid = g.spot;

    -- A claimed mailbox has a new row, so its former one is invisible.
    WITH unclaimed AS MATERIALIZED (
        SELECT h.* FROM unnest(held_spots, held, held_keys, held_firsts) AS h (spot, subscription, key, first_id)
        JOIN beneath_mailbox AS m ON m.ctid = h.spot
    )
    SELECT array_agg(u.spot), array_agg(u.subscription), array_agg(u.key), array_agg(u.first_id)
    INTO held_spots, held, held_keys, held_firsts
    FROM unclaimed AS u
    WHERE (
        SELECT d.id FROM beneath_delivery AS d
        WHERE d.state = 4 AND d.subscription = u.subscription AND d.mailbox = u.key
            AND (d.subscription, d.mailbox, d.id) >= (u.subscription, u.key, u.first_id) LIMIT 1
    ) IS NULL;
    IF held IS NOT NULL THEN
        PERFORM beneath_close_2(held_spots, held, held_keys, held_firsts, now_at);
    END IF;
END $$;
