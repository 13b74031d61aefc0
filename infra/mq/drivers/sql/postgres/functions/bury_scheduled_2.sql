-- Turn the due deliveries of a scheduled message into dead letters.
CREATE FUNCTION beneath_bury_scheduled_2(message text, now_at double precision, reason text) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
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
END $$;
