-- Gives a lease up: others may take over at once. KEYS: leases. ARGV: worker.

return call('ZADD', KEYS[1], 'XX', 0, ARGV[1])
