-- Promote due scheduled messages, in the same order in all mailboxes. The caller has locked their first deliveries and
-- their keys. Unless they may overtake, messages behind an earlier one that another transaction has locked are not
-- promoted. They become new rows for the workers: an updated row would be locked by the transaction that waited for it.
-- Returns the number of promoted deliveries.
CREATE FUNCTION beneath_place_2(messages text[], now_at double precision, overtaking boolean) RETURNS integer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    placed_count integer;
BEGIN
    WITH mine AS MATERIALIZED (
        SELECT d.id, d.message_id, d.mailbox, d.due_at, min(d.id) OVER (PARTITION BY d.message_id, d.due_at) AS first
        FROM unnest(messages) AS m (id) CROSS JOIN LATERAL (
            SELECT t.* FROM beneath_delivery AS t
            WHERE t.state + 0 = 3 AND t.message_id = m.id AND t.due_at <= now_at OFFSET 0
        ) AS d
    ), last AS MATERIALIZED (
        SELECT mailbox, max(due_at) AS due_at FROM mine WHERE mailbox IS NOT NULL AND NOT overtaking GROUP BY mailbox
    ), ahead AS MATERIALIZED (
        SELECT l.mailbox, a.due_at, a.id FROM last AS l CROSS JOIN LATERAL (
            SELECT d.due_at, d.id FROM beneath_delivery AS d
            WHERE d.state - 3 = 0 AND d.mailbox = l.mailbox AND d.due_at <= l.due_at
                AND NOT d.message_id = ANY (messages)
            ORDER BY d.due_at, d.id LIMIT 1
        ) AS a
    ), behind AS MATERIALIZED (
        SELECT DISTINCT m.message_id FROM ahead AS a JOIN mine AS m ON m.mailbox = a.mailbox
        WHERE (a.due_at, a.id) < (m.due_at, m.id)
    ), due AS MATERIALIZED (
        SELECT id, due_at, first FROM mine WHERE message_id NOT IN (SELECT message_id FROM behind)
    ), numbered AS MATERIALIZED (
        SELECT s.id, nextval('beneath_number') AS number
        FROM (SELECT id FROM due ORDER BY due_at, first, id) AS s
    ), gone AS (
        DELETE FROM beneath_delivery AS d WHERE d.id = ANY (ARRAY(SELECT id FROM numbered)) RETURNING d.*
    ), placed AS (
        INSERT INTO beneath_delivery
            (id, subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
        SELECT n.number, subscription, CASE WHEN mailbox IS NULL THEN 0 ELSE 4 END,
            CASE WHEN due_at = 0 THEN now_at ELSE due_at END,
            published_at, message_id, event, ordering_key, mailbox, body
        FROM gone AS g JOIN numbered AS n ON n.id = g.id ORDER BY n.number
        RETURNING subscription, mailbox, due_at, id
    ), opened AS (
        INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, first_id)
        SELECT subscription, mailbox, 0, min(due_at), min(id), min(id) FROM placed WHERE mailbox IS NOT NULL
        GROUP BY subscription, mailbox ORDER BY subscription, mailbox
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) INTO placed_count FROM placed;
    RETURN placed_count;
END $$;
