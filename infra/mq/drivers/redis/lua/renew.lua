-- Extends a lease; also one that ran out, as long as nobody took over. KEYS: leases. ARGV: time, worker, lease.

local now = clock(ARGV[1])
if (tonumber(call('ZSCORE', KEYS[1], ARGV[2])) or 0) <= 0 then return 0 end
call('ZADD', KEYS[1], digits(now + ARGV[3]), ARGV[2])
return 1
