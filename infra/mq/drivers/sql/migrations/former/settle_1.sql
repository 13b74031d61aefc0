-- Called by the release before 0007.
CREATE FUNCTION beneath_settle_1(
    worker bigint, now_at double precision, done bigint[],
    names text[], keys text[], fences bigint[], closing boolean[],
    places integer[], ids bigint[], kinds integer[], states integer[], failed integer[], deferred integer[],
    delays double precision[], errors text[], traces text[]
) RETURNS integer[] LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
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
END $$;
