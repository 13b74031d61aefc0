-- End claims. `done` are unordered deliveries to delete, of any owner. `names`, `keys` and `fences` are the claimed
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
) RETURNS integer[] LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    held bigint[] := '{}';
    held_keys text[] := '{}';
    held_last bigint[] := '{}';
    held_first bigint[] := '{}';
    staying boolean[] := '{}';
    effective integer[];
    over bigint[] := done;
    closed bigint[] := '{}';
    closed_keys text[] := '{}';
    closed_firsts bigint[] := '{}';
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
END $$;
