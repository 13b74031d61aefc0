-- Claim due deliveries. Returns a row for each delivery; those of a mailbox have its due time and turn. A row without a
-- name means that scheduled messages are due: workers promote these in separate steps. Bodies beyond the first add up
-- to at most `bytes`. Deliveries due before their subscription's time in `starts`, and messages due before
-- `scheduled_start`, are omitted. Retired deliveries are removed instead of returned. A delivery with
-- `suspect_after` takeovers is claimed alone.
--
-- When the answer is lost or the caller is cancelled, the worker raises its epoch; the claim is void if it reaches the
-- server later.
CREATE FUNCTION beneath_claim_3(
    worker bigint, its_epoch bigint, names text[], limits integer[], starts double precision[],
    scheduled_start double precision, batch integer, bytes bigint, suspect_after integer, now_at double precision
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
            row_number() OVER mine AS nth, coalesce(bool_or(d.takeovers >= suspect_after) OVER mine, false) AS suspects,
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
END $$;
