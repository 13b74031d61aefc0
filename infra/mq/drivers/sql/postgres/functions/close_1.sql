-- Release mailboxes that the caller has locked, for any worker; delete those that are certainly empty. No delivery of a
-- mailbox comes before the one in `firsts`, or before the stored first number. A mailbox that may be empty is checked
-- again after 0.05 seconds.
CREATE FUNCTION beneath_close_1(subscriptions bigint[], keys text[], firsts bigint[], now_at double precision)
RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    sure boolean[];
BEGIN
    -- Without the shared lock another transaction may have added to the mailbox and not committed yet.
    sure := ARRAY(
        SELECT pg_try_advisory_xact_lock_shared(1650812528, hashtext(k.key) & 1023)
        FROM unnest(keys) WITH ORDINALITY AS k (key, place) ORDER BY k.place
    );
    WITH closed AS MATERIALIZED (
        SELECT m.subscription, m.ordering_key AS key, greatest(m.first_id, c.first) AS first, c.sure, EXISTS (
            SELECT 1 FROM beneath_delivery AS d
            WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key
                AND (d.subscription, d.mailbox, d.id) >= (m.subscription, m.ordering_key, greatest(m.first_id, c.first))
        ) AS filled
        FROM unnest(subscriptions, keys, firsts, sure) AS c (subscription, key, first, sure)
        JOIN beneath_mailbox AS m ON m.subscription = c.subscription AND m.ordering_key = c.key
    ), dropped AS (
        DELETE FROM beneath_mailbox AS m USING closed AS c
        WHERE m.subscription = c.subscription AND m.ordering_key = c.key AND c.sure AND NOT c.filled
    )
    UPDATE beneath_mailbox AS m SET state = 0, due_at = CASE WHEN c.filled THEN now_at ELSE now_at + 0.05 END,
        turn = nextval('beneath_number'), owner = NULL, first_id = c.first, last_id = NULL, parked_event = NULL
    FROM closed AS c
    WHERE m.subscription = c.subscription AND m.ordering_key = c.key AND (c.filled OR NOT c.sure);
END $$;
