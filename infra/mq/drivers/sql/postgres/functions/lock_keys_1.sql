-- Lock ordering keys until the end of the transaction, in the order of their stripes.
CREATE FUNCTION beneath_lock_keys_1(keys text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1650812528, stripe)
    FROM (SELECT DISTINCT hashtext(key) & 1023 AS stripe FROM unnest(keys) AS key ORDER BY 1) AS sorted;
END $$;
