-- Answers what live workers say of themselves, from one place among them on: a bounded number.
-- KEYS: meta, leases, workers. ARGV: time, place, how many.

local now = clock(ARGV[1], KEYS[1])
local alive = call('ZRANGEBYSCORE', KEYS[2], '(' .. digits(now), '+inf', 'LIMIT', ARGV[2], ARGV[3])
return {#alive, values(KEYS[3], alive)}
