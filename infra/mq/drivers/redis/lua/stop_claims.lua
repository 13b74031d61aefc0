-- Makes every claim of a worker void whose number is at most the given one, also one that comes late, and hands nothing
-- over to it; answers the number of its last claim that claimed something, and of the sleep in which something may still
-- be handed over to it ('' for none).
-- KEYS: leases, claims, sleepers. ARGV: worker, number.

if (tonumber(call('ZSCORE', KEYS[1], ARGV[1])) or 0) <= 0 then return -2 end
local last, sleep = call('HGET', KEYS[2], ARGV[1]) or '0', call('HGET', KEYS[3], ARGV[1]) or ''
if tonumber(ARGV[2]) > tonumber(last) then call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
call('HDEL', KEYS[3], ARGV[1])
return {last, sleep}
