-- Gives a lease up: others may take over at once, and nothing is handed over to this worker. KEYS: leases, sleepers.
-- ARGV: worker.

call('HDEL', KEYS[2], ARGV[1])
return call('ZADD', KEYS[1], 'XX', 0, ARGV[1])
