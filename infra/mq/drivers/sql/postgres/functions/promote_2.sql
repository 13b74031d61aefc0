-- Promote one step of due messages: the first `most` deliveries after (`after_at`, `after_id`), or the `chosen`
-- messages. All deliveries of a message are promoted together, so that a cancellation finds all of them or none.
-- Messages locked by another transaction are left for later. Returns the number of promoted deliveries and the position
-- where the step ended; NULL means that no more follow.
--
-- A step takes no more messages after 8 MiB of bodies, and waits at most three times, for 20 milliseconds, for a row
-- that another transaction has locked. A message whose row causes an error that would occur again becomes a dead
-- letter, because it would block all later ones.
CREATE FUNCTION beneath_promote_2(
    now_at double precision, most integer, after_at double precision, after_id bigint, chosen text[],
    OUT placed integer, OUT last_at double precision, OUT last_id bigint
) LANGUAGE plpgsql SET lock_timeout = '20ms'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    messages text[] := chosen;
    single text;
    stuck integer := 0;
BEGIN
    placed := 0;
    IF chosen IS NULL THEN
        WITH due AS MATERIALIZED (
            SELECT d.due_at, d.id, d.message_id, octet_length(d.body) AS size FROM beneath_delivery AS d
            WHERE d.state = 3 AND d.due_at <= now_at AND (d.due_at, d.id) > (after_at, after_id)
            ORDER BY d.due_at, d.id LIMIT most
        ), measured AS MATERIALIZED (
            SELECT d.*, sum(d.size) OVER in_order - d.size AS before, row_number() OVER in_order AS nth
            FROM due AS d WINDOW in_order AS (ORDER BY d.due_at, d.id)
        ), taken AS MATERIALIZED (
            SELECT * FROM measured WHERE before <= 8388608
        )
        SELECT array_agg(DISTINCT t.message_id), max(t.due_at), (array_agg(t.id ORDER BY t.nth DESC))[1]
        INTO messages, last_at, last_id FROM taken AS t;
    END IF;
    IF messages IS NULL THEN
        RETURN;
    END IF;
    messages := ARRAY(
        SELECT f.message_id FROM beneath_delivery AS f
        WHERE f.state * 1 = 3 AND f.id = ANY (ARRAY(
            SELECT d.first FROM unnest(messages) AS m (id) CROSS JOIN LATERAL (
                SELECT min(t.id) AS first FROM beneath_delivery AS t
                WHERE t.state + 0 = 3 AND t.message_id = m.id AND t.due_at <= now_at
            ) AS d WHERE d.first IS NOT NULL
        )) ORDER BY f.id FOR UPDATE SKIP LOCKED
    );
    -- A publisher holds the key until it commits; its messages must not be numbered in between.
    messages := ARRAY(
        SELECT k.id FROM (
            SELECT m.id, d.mailbox FROM unnest(messages) AS m (id) CROSS JOIN LATERAL (
                SELECT max(t.mailbox) AS mailbox FROM beneath_delivery AS t
                WHERE t.state + 0 = 3 AND t.message_id = m.id
            ) AS d ORDER BY m.id OFFSET 0
        ) AS k
        WHERE k.mailbox IS NULL OR pg_try_advisory_xact_lock(1650812528, hashtext(k.mailbox) & 1023)
    );
    IF cardinality(messages) = 0 THEN
        RETURN;
    END IF;
    BEGIN
        placed := beneath_place_2(messages, now_at, false);
    EXCEPTION WHEN program_limit_exceeded OR data_exception OR integrity_constraint_violation OR lock_not_available THEN
        FOREACH single IN ARRAY messages LOOP
            BEGIN
                placed := placed + beneath_place_2(ARRAY[single], now_at, false);
            EXCEPTION
                WHEN program_limit_exceeded OR data_exception OR integrity_constraint_violation THEN
                    PERFORM beneath_bury_scheduled_2(single, now_at, 'PostgreSQL refuses its place: ' || SQLERRM);
                WHEN lock_not_available THEN
                    stuck := stuck + 1;
                    EXIT WHEN stuck = 3;
            END;
        END LOOP;
    END;
END $$;
