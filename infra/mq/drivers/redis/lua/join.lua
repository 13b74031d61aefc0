-- Registers a live worker. KEYS: leases, workers. ARGV: time, worker, lease, who it is.

local now = clock(ARGV[1])
call('HSET', KEYS[2], ARGV[2], ARGV[4])
call('ZADD', KEYS[1], digits(now + ARGV[3]), ARGV[2])
return digits(now)
