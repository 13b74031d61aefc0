-- Release mailboxes that the caller has locked, for any worker; delete those that are certainly empty. `spots` are their
-- rows. No delivery of a mailbox comes before the one in `firsts`. A mailbox that may be empty is checked again after
-- 0.05 seconds.
CREATE FUNCTION beneath_close_2(
    spots tid[], subscriptions bigint[], keys text[], firsts bigint[], now_at double precision
) RETURNS void LANGUAGE plpgsql
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
        SELECT c.spot, c.first, c.sure, EXISTS (
            SELECT 1 FROM beneath_delivery AS d
            WHERE d.state = 4 AND d.subscription = c.subscription AND d.mailbox = c.key
                AND (d.subscription, d.mailbox, d.id) >= (c.subscription, c.key, c.first)
        ) AS filled
        FROM unnest(spots, subscriptions, keys, firsts, sure) AS c (spot, subscription, key, first, sure)
    ), dropped AS (
        DELETE FROM beneath_mailbox WHERE ctid = ANY (ARRAY(SELECT c.spot FROM closed AS c WHERE c.sure AND NOT c.filled))
    )
    UPDATE beneath_mailbox AS m SET state = 0, due_at = CASE WHEN c.filled THEN now_at ELSE now_at + 0.05 END,
        turn = nextval('beneath_number'), owner = NULL, first_id = c.first, last_id = NULL, parked_event = NULL
    FROM closed AS c WHERE m.ctid = c.spot AND (c.filled OR NOT c.sure);
END $$;
