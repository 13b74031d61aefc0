-- Called by the release before 0008; redefined so that both releases store the same ids.
CREATE FUNCTION beneath_publish_1 (
    ids text[], events text[], keys text[], dues double precision[], published double precision[], dedupes boolean[],
    bodies bytea[], now_at double precision, forgotten_at double precision,
    route_events text[], route_subscriptions bigint[], route_ordered boolean[], patience text
) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    RETURN beneath_publish_2(
        ids, events, keys, dues, published, dedupes, bodies, now_at, forgotten_at, route_events, route_subscriptions,
        route_ordered, patience
    );
END $$;
