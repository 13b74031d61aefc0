-- Registers a live worker. KEYS: leases, workers, meta, since. ARGV: time, worker, lease, packed data of the worker.

local now = clock(ARGV[1], KEYS[3])
call('HSET', KEYS[2], ARGV[2], ARGV[4])
call('HSET', KEYS[4], ARGV[2], digits(now))
call('ZADD', KEYS[1], digits(now + ARGV[3]), ARGV[2])
return digits(now)
