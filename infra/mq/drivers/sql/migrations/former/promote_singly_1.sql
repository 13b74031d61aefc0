-- Called by the release before 0008.
CREATE FUNCTION beneath_promote_singly_1(now_at double precision) RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    single text;
    stuck integer := 0;
BEGIN
    FOR single IN
        SELECT message_id FROM (
            SELECT DISTINCT message_id FROM (
                SELECT message_id FROM beneath_delivery
                WHERE state = 3 AND due_at <= now_at ORDER BY due_at, id LIMIT 2000
            ) AS due
        ) AS several ORDER BY random() LIMIT 200
    LOOP
        BEGIN
            PERFORM beneath_promote_1(now_at, 1, ARRAY[single]);
        EXCEPTION WHEN lock_not_available THEN
            stuck := stuck + 1;
            EXIT WHEN stuck = 3;
        END;
    END LOOP;
END $$;
