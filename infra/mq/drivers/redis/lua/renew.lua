-- Renews a lease, also an expired one whose claims were not taken over; returns 0 if it is lost.
-- KEYS: leases, meta, since. ARGV: time, worker, lease, time within which live workers renew it.

local now, lease = clock(ARGV[1], KEYS[2]), tonumber(ARGV[3])
local held = tonumber(call('ZSCORE', KEYS[1], ARGV[2])) or 0
if held <= 0 then return 0 end
-- After a longer pause than between two renewals the server may have been unreachable for all workers.
if now - (held - lease) > tonumber(ARGV[4]) then call('HSET', KEYS[3], ARGV[2], digits(now)) end
call('ZADD', KEYS[1], digits(now + lease), ARGV[2])
return 1
