-- Called by the release before 0008.
CREATE FUNCTION beneath_place_1(messages text[], now_at double precision, overtaking boolean) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
BEGIN
    WITH mine AS MATERIALIZED (
        SELECT d.id, d.message_id, d.mailbox, d.due_at, min(d.id) OVER (PARTITION BY d.message_id, d.due_at) AS first
        FROM unnest(messages) AS m (id)
        JOIN beneath_delivery AS d ON d.state = 3 AND d.message_id = m.id AND d.due_at <= now_at
    ), ahead AS MATERIALIZED (
        SELECT DISTINCT ON (d.mailbox) d.mailbox, d.due_at, d.id
        FROM (SELECT DISTINCT mailbox FROM mine WHERE mailbox IS NOT NULL AND NOT overtaking) AS k
        JOIN beneath_delivery AS d ON d.state = 3 AND d.mailbox = k.mailbox AND d.due_at <= now_at
        WHERE d.message_id NOT IN (SELECT unnest(messages)) ORDER BY d.mailbox, d.due_at, d.id
    ), due AS MATERIALIZED (
        SELECT id, due_at, first FROM mine WHERE message_id NOT IN (
            SELECT l.message_id FROM mine AS l JOIN ahead AS a ON a.mailbox = l.mailbox
            WHERE (a.due_at, a.id) < (l.due_at, l.id)
        )
    ), numbered AS MATERIALIZED (
        SELECT s.id, nextval('beneath_number') AS number
        FROM (SELECT id FROM due ORDER BY due_at, first, id) AS s
    ), gone AS (
        DELETE FROM beneath_delivery AS d USING numbered AS n WHERE d.id = n.id RETURNING n.number, d.*
    ), placed AS (
        INSERT INTO beneath_delivery
            (id, subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
        SELECT number, subscription, CASE WHEN mailbox IS NULL THEN 0 ELSE 4 END,
            CASE WHEN due_at = 0 THEN now_at ELSE due_at END,
            published_at, message_id, event, ordering_key, mailbox, body
        FROM gone ORDER BY number
        RETURNING subscription, mailbox, due_at, id
    )
    INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, first_id)
    SELECT subscription, mailbox, 0, min(due_at), min(id), min(id) FROM placed WHERE mailbox IS NOT NULL
    GROUP BY subscription, mailbox ORDER BY subscription, mailbox
    ON CONFLICT DO NOTHING;
END $$;
