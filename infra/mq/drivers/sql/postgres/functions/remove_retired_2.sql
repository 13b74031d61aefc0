-- Delete the given deliveries whose event is being retired from their subscription, or turn them into dead letters.
CREATE FUNCTION beneath_remove_retired_2(ids bigint[], now_at double precision) RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
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
    SELECT s.name, g.message_id, g.event, g.ordering_key, coalesce(g.last_error, 'its subscription was retired'),
        coalesce(g.last_traceback, ''), g.failures, g.crashes, g.published_at, now_at, g.body
    FROM gone AS g JOIN going AS i ON i.id = g.id JOIN beneath_subscription AS s ON s.id = g.subscription
    WHERE i.backlog = 'dead' ORDER BY g.id;
END $$;
