-- Store the deliveries of messages. Returns 0: done. 1: done, but the caller must call `beneath_promote_2` after
-- COMMIT. 2: nothing done; this transaction's snapshot has an old registry, so the caller must pass the present routes.
--
-- A publisher promotes the messages of a mailbox that became due before its own. If these are more than 50 of one
-- mailbox or 500 of all, its own messages are stored as scheduled too, behind them; 1 second is the largest difference
-- between the clocks of two publishers.
CREATE FUNCTION beneath_publish_2(
    ids text[], events text[], keys text[], dues double precision[], published double precision[], dedupes boolean[],
    bodies bytea[], now_at double precision, forgotten_at double precision,
    route_events text[], route_subscriptions bigint[], route_ordered boolean[], patience text
) RETURNS integer LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    -- A strict transaction cannot wait for other writers of a row, only fail: such rows are left for later.
    frozen CONSTANT boolean := current_setting('transaction_isolation') <> 'read committed';
    kept boolean[];
    mailboxes text[] := '{}';
    earlier text[] := '{}';
    crowded text[] := '{}';
    crowded_until double precision[] := '{}';
    first_number bigint;
BEGIN
    IF patience IS NOT NULL THEN
        PERFORM set_config('lock_timeout', patience, true);
    END IF;
    PERFORM pg_advisory_xact_lock_shared(1650812527, 0);
    IF route_events IS NULL THEN
        IF frozen THEN
            RETURN 2;
        END IF;
        SELECT array_agg(r.event), array_agg(s.id), array_agg(s.ordered = 1)
        INTO route_events, route_subscriptions, route_ordered
        FROM beneath_route AS r JOIN beneath_subscription AS s ON s.id = r.subscription WHERE r.event = ANY (events);
    END IF;

    IF true = ANY (dedupes) THEN
        WITH firsts AS MATERIALIZED (
            SELECT DISTINCT ON (m.event COLLATE "C", m.id COLLATE "C") m.event, m.id, m.place
            FROM unnest(events, ids, dedupes) WITH ORDINALITY AS m (event, id, dedupe, place)
            WHERE m.dedupe AND NOT EXISTS (
                -- The previous release stores ids without events.
                SELECT 1 FROM beneath_dedupe AS o WHERE o.id = m.id AND o.at > forgotten_at
            ) ORDER BY m.event COLLATE "C", m.id COLLATE "C", m.place
        ), accepted AS (
            INSERT INTO beneath_accepted AS d (event, id, at)
            SELECT f.event, f.id, now_at FROM firsts AS f ORDER BY f.event COLLATE "C", f.id COLLATE "C"
            ON CONFLICT (event, id) DO UPDATE SET at = excluded.at WHERE d.at <= forgotten_at RETURNING d.event, d.id
        )
        SELECT array_agg(NOT m.dedupe OR a.id IS NOT NULL ORDER BY m.place) INTO kept
        FROM unnest(events, ids, dedupes) WITH ORDINALITY AS m (event, id, dedupe, place)
        LEFT JOIN firsts AS f ON f.place = m.place LEFT JOIN accepted AS a ON a.event = f.event AND a.id = f.id;
    END IF;

    IF true = ANY (route_ordered) THEN
        mailboxes := ARRAY(
            SELECT DISTINCT coalesce(m.key, '') FROM unnest(events, keys, dues, kept) AS m (event, key, due, kept)
            JOIN unnest(route_events, route_ordered) AS r (event, ordered) ON r.event = m.event AND r.ordered
            WHERE coalesce(m.kept, true) AND (m.due IS NULL OR m.due <= now_at)
        );
    END IF;
    IF cardinality(mailboxes) > 0 AND NOT frozen THEN
        IF EXISTS (SELECT 1 FROM beneath_delivery WHERE state = 3 AND due_at <= now_at) THEN
            WITH waiting AS MATERIALIZED (
                SELECT k.key, d.message_id FROM unnest(mailboxes) AS k (key) CROSS JOIN LATERAL (
                    SELECT t.message_id FROM beneath_delivery AS t
                    WHERE t.state - 3 = 0 AND t.mailbox = k.key AND t.due_at <= now_at
                    ORDER BY t.due_at, t.id LIMIT 51
                ) AS d LIMIT 501
            ), many AS MATERIALIZED (
                SELECT key FROM waiting GROUP BY key HAVING count(*) > 50
            )
            SELECT
                CASE WHEN (SELECT count(*) FROM waiting) > 500 THEN mailboxes ELSE ARRAY(SELECT key FROM many) END,
                ARRAY(SELECT DISTINCT message_id FROM waiting WHERE key NOT IN (SELECT key FROM many))
            INTO crowded, earlier;
            IF cardinality(crowded) = cardinality(mailboxes) THEN
                earlier := '{}';
            END IF;
        END IF;
        IF cardinality(earlier) > 0 THEN
            PERFORM 1 FROM beneath_delivery WHERE id = ANY (ARRAY(
                SELECT d.first FROM unnest(earlier) AS m (id) CROSS JOIN LATERAL (
                    SELECT min(t.id) AS first FROM beneath_delivery AS t
                    WHERE t.state + 0 = 3 AND t.message_id = m.id AND t.due_at <= now_at
                ) AS d WHERE d.first IS NOT NULL
            )) ORDER BY id FOR UPDATE;
        END IF;
        PERFORM beneath_lock_keys_1(mailboxes);
        IF cardinality(earlier) > 0 THEN
            PERFORM beneath_place_2(earlier, now_at, true);
        END IF;
        IF cardinality(crowded) > 0 THEN
            SELECT array_agg(k.key), array_agg(coalesce((
                SELECT d.due_at FROM beneath_delivery AS d
                WHERE d.state - 3 = 0 AND d.mailbox = k.key AND d.due_at <= now_at + 1.0
                ORDER BY d.due_at DESC LIMIT 1
            ), now_at)) INTO crowded, crowded_until FROM unnest(crowded) AS k (key);
        END IF;
        first_number := nextval('beneath_number');
        INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, first_id)
        SELECT n.subscription, n.key, 0, n.due_at, nextval('beneath_number'), first_number FROM (
            SELECT r.subscription, coalesce(m.key, '') AS key, min(coalesce(m.due, now_at)) AS due_at
            FROM unnest(events, keys, dues, kept) WITH ORDINALITY AS m (event, key, due, kept, place)
            JOIN unnest(route_events, route_subscriptions, route_ordered) AS r (event, subscription, ordered)
                ON r.event = m.event AND r.ordered
            WHERE coalesce(m.kept, true) AND (m.due IS NULL OR m.due <= now_at)
                AND NOT coalesce(m.key, '') = ANY (crowded)
            GROUP BY 1, 2 ORDER BY min(m.place), 1
        ) AS n
        ON CONFLICT DO NOTHING;
    END IF;

    INSERT INTO beneath_delivery
        (subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
    SELECT r.subscription,
        CASE WHEN m.due > now_at THEN 3 WHEN NOT r.ordered THEN 0 WHEN frozen OR c.until IS NOT NULL THEN 3 ELSE 4 END,
        CASE WHEN m.due > now_at THEN m.due WHEN r.ordered AND frozen THEN 0
            WHEN r.ordered AND c.until IS NOT NULL THEN greatest(c.until, now_at) ELSE coalesce(m.due, now_at) END,
        m.published, m.id, m.event, m.key, CASE WHEN r.ordered THEN coalesce(m.key, '') END, m.body
    FROM unnest(ids, events, keys, dues, published, bodies, kept) WITH ORDINALITY
        AS m (id, event, key, due, published, body, kept, place)
    JOIN unnest(route_events, route_subscriptions, route_ordered) AS r (event, subscription, ordered)
        ON r.event = m.event
    LEFT JOIN unnest(crowded, crowded_until) AS c (key, until) ON c.key = coalesce(m.key, '')
    WHERE coalesce(m.kept, true) ORDER BY m.place, r.subscription;
    RETURN CASE WHEN cardinality(mailboxes) > 0 AND (frozen OR cardinality(crowded) > 0) THEN 1 ELSE 0 END;
END $$;
