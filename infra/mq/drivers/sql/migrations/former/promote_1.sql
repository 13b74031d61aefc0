-- Called by the release before 0008.
CREATE FUNCTION beneath_promote_1(now_at double precision, most integer, chosen text[]) RETURNS void
LANGUAGE plpgsql SET lock_timeout = '100ms'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    firsts bigint[];
    messages text[];
BEGIN
    messages := coalesce(chosen, ARRAY(
        SELECT DISTINCT message_id FROM (
            SELECT message_id FROM beneath_delivery WHERE state = 3 AND due_at <= now_at ORDER BY due_at, id LIMIT most
        ) AS due
    ));
    firsts := ARRAY(
        SELECT min(d.id) FROM unnest(messages) AS m (id)
        JOIN beneath_delivery AS d ON d.state = 3 AND d.message_id = m.id AND d.due_at <= now_at GROUP BY m.id
    );
    messages := ARRAY(
        SELECT message_id FROM beneath_delivery WHERE id = ANY (firsts) AND state = 3 ORDER BY id
        FOR UPDATE SKIP LOCKED
    );
    IF cardinality(messages) = 0 THEN
        RETURN;
    END IF;
    PERFORM beneath_lock_keys_1(ARRAY(
        SELECT d.mailbox FROM unnest(messages) AS m (id)
        JOIN beneath_delivery AS d ON d.state = 3 AND d.message_id = m.id WHERE d.mailbox IS NOT NULL
    ));
    PERFORM beneath_place_1(messages, now_at, false);
END $$;
