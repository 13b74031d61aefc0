-- Makes all claim requests of a worker up to a number void, also those that arrive late, and ends its wait. Returns the
-- number of its last request that claimed something, and the number of the wait that ended ('' for none); or -2 (lease lost).
-- KEYS: leases, claims, waiting workers. ARGV: worker, number.

if (tonumber(call('ZSCORE', KEYS[1], ARGV[1])) or 0) <= 0 then return -2 end
local last, wait = call('HGET', KEYS[2], ARGV[1]) or '0', call('HGET', KEYS[3], ARGV[1]) or ''
if tonumber(ARGV[2]) > tonumber(last) then call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
call('HDEL', KEYS[3], ARGV[1])
return {last, wait}
