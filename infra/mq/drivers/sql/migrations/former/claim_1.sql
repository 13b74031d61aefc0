-- Called by the release before 0007.
CREATE FUNCTION beneath_claim_1(
    worker bigint, names text[], limits integer[], starts double precision[], batch integer, now_at double precision
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
        WHERE d.id = f.id AND f.before <= 16777216
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
            row_number() OVER mine AS nth, coalesce(bool_or(d.takeovers >= 2) OVER mine, false) AS suspects
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
        SELECT f.* FROM fitting AS f WHERE f.before <= 16777216
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
END $$;
