-- End claims. `done` are handled unordered deliveries to delete, of any owner. Each claimed mailbox has its key and fence
-- in `keys` and `fences`, and its subscription's name in `names` at `named`; `closing` tells which mailboxes to release.
-- `finished` are handled deliveries of the mailboxes at `finished_in`. Each further settlement belongs to the mailbox at
-- `places` (0: an unordered delivery, with its fence in `claims`), and its kind is 1 (dead letter) or 2 (keep, with
-- `states` as the new state of the unordered delivery or else of the mailbox). Returns the positions, from 1, of fenced
-- settlements in `finished` and `ids`. Arrays are read by subscript, because joining them without hash joins takes
-- quadratic time.
CREATE FUNCTION beneath_settle_3(
    worker bigint, now_at double precision, done bigint[],
    names text[], named integer[], keys text[], fences bigint[], closing boolean[],
    finished_in integer[], finished bigint[],
    places integer[], ids bigint[], claims bigint[], kinds integer[], states integer[], failed integer[],
    deferred integer[], delays double precision[], errors text[], traces text[], needed text[],
    OUT fenced_finished integer[], OUT fenced integer[]
) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    subscriptions bigint[];
    held bigint[] := '{}';
    held_keys text[] := '{}';
    held_spots tid[] := '{}';
    held_last bigint[] := '{}';
    held_first bigint[] := '{}';
    staying boolean[] := '{}';
    deleted bigint[] := '{}';
    effective integer[] := '{}';
    closed bigint[] := '{}';
    closed_keys text[] := '{}';
    closed_spots tid[] := '{}';
    closed_firsts bigint[] := '{}';
    it record;
    nth integer;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'beneath_settle needs READ COMMITTED';
    END IF;
    subscriptions := ARRAY(
        SELECT coalesce(
            (SELECT s.id FROM beneath_subscription AS s WHERE s.name = w.name),
            (SELECT a.subscription FROM beneath_alias AS a WHERE a.name = w.name)
        ) FROM unnest(names) WITH ORDINALITY AS w (name, place) ORDER BY w.place
    );
    FOR it IN
        SELECT m.spot, m.subscription, m.ordering_key, m.last_id, m.first_id, c.place
        FROM (
            SELECT subscriptions[w.name] AS subscription, w.key, w.fence, w.place::integer AS place
            FROM unnest(named, keys, fences) WITH ORDINALITY AS w (name, key, fence, place)
            ORDER BY 1, w.key COLLATE "C"
        ) AS c
        CROSS JOIN LATERAL (
            SELECT t.ctid AS spot, t.subscription, t.ordering_key, t.last_id, t.first_id FROM beneath_mailbox AS t
            WHERE t.subscription = c.subscription AND t.ordering_key = c.key
                AND t.state + 0 = 1 AND t.owner = worker AND t.fence = c.fence FOR UPDATE
        ) AS m
    LOOP
        held[it.place] := it.subscription;
        held_keys[it.place] := it.ordering_key;
        held_spots[it.place] := it.spot;
        held_last[it.place] := it.last_id;
        held_first[it.place] := it.first_id;
    END LOOP;

    DELETE FROM beneath_delivery WHERE id = ANY (done);
    -- Deliveries end in their order, so the last deleted one was the head.
    FOR it IN
        WITH gone AS (
            DELETE FROM beneath_delivery AS d USING unnest(finished_in, finished) AS f (place, id)
            WHERE d.id = f.id AND d.state + 0 = 4 AND d.subscription = held[f.place]
                AND d.mailbox = held_keys[f.place] AND d.id <= held_last[f.place]
            RETURNING f.place, d.id
        )
        SELECT g.place, max(g.id) AS last_id, array_agg(g.id) AS ids FROM gone AS g GROUP BY g.place
    LOOP
        deleted := deleted || it.ids;
        held_first[it.place] := greatest(held_first[it.place], it.last_id);
    END LOOP;
    IF cardinality(deleted) < cardinality(finished) THEN
        fenced_finished := ARRAY(
            SELECT f.nth::integer FROM unnest(finished) WITH ORDINALITY AS f (id, nth) WHERE NOT f.id = ANY (deleted)
        );
    END IF;

    IF cardinality(ids) > 0 THEN
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
        fenced := ARRAY(SELECT e FROM generate_series(1, cardinality(ids)) AS e WHERE NOT e = ANY (effective));
        FOREACH nth IN ARRAY effective LOOP
            IF kinds[nth] = 1 AND places[nth] > 0 THEN
                held_first[places[nth]] := greatest(held_first[places[nth]], ids[nth]);
            END IF;
        END LOOP;

        WITH ended AS MATERIALIZED (
            SELECT ids[e] AS id, errors[e] AS error, traces[e] AS trace, failed[e] AS failed, e AS nth
            FROM unnest(effective) AS e WHERE kinds[e] = 1
        ), gone AS (
            DELETE FROM beneath_delivery AS d USING ended AS e WHERE d.id = e.id
            RETURNING d.*, e.error, e.trace, e.failed, e.nth
        )
        INSERT INTO beneath_dead_letter (
            subscription, message_id, event, ordering_key, error, traceback, failures, crashes, published_at, died_at,
            body
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
                turn = nextval('beneath_number'), owner = NULL, last_id = NULL, first_id = held_first[places[e]],
                parked_event = CASE WHEN states[e] = 2 THEN coalesce(needed[e], d.event) END
            FROM unnest(effective) AS e JOIN beneath_delivery AS d ON d.id = ids[e]
            WHERE kinds[e] = 2 AND places[e] > 0 AND m.subscription = d.subscription AND m.ordering_key = d.mailbox
            RETURNING places[e] AS place
        LOOP
            staying[it.place] := true;
        END LOOP;
    END IF;
    FOR nth IN 1 .. cardinality(fences) LOOP
        IF closing[nth] AND held[nth] IS NOT NULL AND staying[nth] IS NULL THEN
            closed := closed || held[nth];
            closed_keys := closed_keys || held_keys[nth];
            closed_spots := closed_spots || held_spots[nth];
            closed_firsts := closed_firsts || held_first[nth];
        END IF;
    END LOOP;
    IF cardinality(closed) > 0 THEN
        PERFORM beneath_close_2(closed_spots, closed, closed_keys, closed_firsts, now_at);
    END IF;
END $$;
