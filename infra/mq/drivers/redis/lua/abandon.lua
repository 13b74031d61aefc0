-- Abandons a lease: other workers may take over at once, and no delivery is handed over to this worker.
-- KEYS: leases, waiting workers. ARGV: worker.

call('HDEL', KEYS[2], ARGV[1])
return call('ZADD', KEYS[1], 'XX', 0, ARGV[1])
