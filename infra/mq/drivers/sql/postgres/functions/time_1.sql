-- Return the queue's time. A process that has called this before expects a time between `earliest` and `latest` by its
-- monotonic clock; `seen` is the latest time returned to any process. When the server's clock is set back, the queue's
-- time neither goes back nor stops: it runs a tenth slower until both agree. If the server's clock is then set forward,
-- the queue's time is less far ahead. `slower` is true while the queue's time is ahead. A difference of 0.5 seconds
-- from the expected time means that the server's clock was set.
CREATE FUNCTION beneath_time_1(
    earliest double precision, latest double precision, OUT reached double precision, OUT slower boolean
) LANGUAGE plpgsql AS $$
DECLARE
    kept beneath_clock%ROWTYPE;
    mine boolean := true;
    server double precision;
    ahead_by double precision;
BEGIN
    SELECT * INTO kept FROM beneath_clock WHERE id = 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        mine := false;
        SELECT * INTO kept FROM beneath_clock WHERE id = 1;
    END IF;
    server := extract(epoch FROM clock_timestamp());
    ahead_by := greatest(0, kept.ahead - greatest(0, server - kept.since) * 0.1);
    reached := server + ahead_by;
    IF reached < greatest(earliest, kept.seen) - 0.5 THEN
        reached := greatest(earliest, kept.seen);
    ELSIF ahead_by > 0 AND reached > latest + 0.5 THEN
        reached := greatest(server, latest);
    END IF;
    slower := reached > server;
    IF mine THEN
        UPDATE beneath_clock SET ahead = reached - server, since = server, seen = reached WHERE id = 1;
    END IF;
END $$;
