-- What `beneath_publish_1` was before 0008, which renames it.
CREATE FUNCTION beneath_publish_1(
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
            SELECT DISTINCT ON (m.id COLLATE "C") m.id, m.place
            FROM unnest(ids, dedupes) WITH ORDINALITY AS m (id, dedupe, place)
            WHERE m.dedupe ORDER BY m.id COLLATE "C", m.place
        ), accepted AS (
            INSERT INTO beneath_dedupe AS d (id, at) SELECT f.id, now_at FROM firsts AS f ORDER BY f.id COLLATE "C"
            ON CONFLICT (id) DO UPDATE SET at = excluded.at WHERE d.at <= forgotten_at RETURNING d.id
        )
        SELECT array_agg(NOT m.dedupe OR a.id IS NOT NULL ORDER BY m.place) INTO kept
        FROM unnest(ids, dedupes) WITH ORDINALITY AS m (id, dedupe, place)
        LEFT JOIN firsts AS f ON f.id = m.id AND f.place = m.place LEFT JOIN accepted AS a ON a.id = f.id;
    END IF;

    IF true = ANY (route_ordered) THEN
        mailboxes := ARRAY(
            SELECT DISTINCT coalesce(m.key, '') FROM unnest(events, keys, dues, kept) AS m (event, key, due, kept)
            JOIN unnest(route_events, route_ordered) AS r (event, ordered) ON r.event = m.event AND r.ordered
            WHERE coalesce(m.kept, true) AND (m.due IS NULL OR m.due <= now_at)
        );
    END IF;
    IF cardinality(mailboxes) > 0 AND NOT frozen THEN
        earlier := ARRAY(
            SELECT DISTINCT message_id FROM beneath_delivery
            WHERE state = 3 AND mailbox = ANY (mailboxes) AND due_at <= now_at
        );
        IF cardinality(earlier) > 0 THEN
            PERFORM 1 FROM beneath_delivery WHERE id IN (
                SELECT min(id) FROM beneath_delivery WHERE state = 3 AND message_id = ANY (earlier)
                    AND due_at <= now_at GROUP BY message_id
            ) ORDER BY id FOR UPDATE;
        END IF;
        PERFORM beneath_lock_keys_1(mailboxes);
        IF cardinality(earlier) > 0 THEN
            PERFORM beneath_place_1(earlier, now_at, true);
        END IF;
        first_number := nextval('beneath_number');
        INSERT INTO beneath_mailbox (subscription, ordering_key, state, due_at, turn, first_id)
        SELECT n.subscription, n.key, 0, n.due_at, nextval('beneath_number'), first_number FROM (
            SELECT r.subscription, coalesce(m.key, '') AS key, min(coalesce(m.due, now_at)) AS due_at
            FROM unnest(events, keys, dues, kept) WITH ORDINALITY AS m (event, key, due, kept, place)
            JOIN unnest(route_events, route_subscriptions, route_ordered) AS r (event, subscription, ordered)
                ON r.event = m.event AND r.ordered
            WHERE coalesce(m.kept, true) AND (m.due IS NULL OR m.due <= now_at)
            GROUP BY 1, 2 ORDER BY min(m.place), 1
        ) AS n
        ON CONFLICT DO NOTHING;
    END IF;

    INSERT INTO beneath_delivery
        (subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
    SELECT r.subscription,
        CASE WHEN m.due > now_at THEN 3 WHEN NOT r.ordered THEN 0 WHEN frozen THEN 3 ELSE 4 END,
        CASE WHEN m.due > now_at THEN m.due WHEN r.ordered AND frozen THEN 0 ELSE coalesce(m.due, now_at) END,
        m.published, m.id, m.event, m.key, CASE WHEN r.ordered THEN coalesce(m.key, '') END, m.body
    FROM unnest(ids, events, keys, dues, published, bodies, kept) WITH ORDINALITY
        AS m (id, event, key, due, published, body, kept, place)
    JOIN unnest(route_events, route_subscriptions, route_ordered) AS r (event, subscription, ordered)
        ON r.event = m.event
    WHERE coalesce(m.kept, true) ORDER BY m.place, r.subscription;
    RETURN CASE WHEN frozen AND cardinality(mailboxes) > 0 THEN 1 ELSE 0 END;
END $$;
