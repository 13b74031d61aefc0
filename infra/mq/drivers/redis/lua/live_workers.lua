-- Returns the packed data of a page of live workers.
-- KEYS: meta, leases, workers. ARGV: time, number of the first worker, size of the page.

local now = clock(ARGV[1], KEYS[1])
local alive = call('ZRANGEBYSCORE', KEYS[2], '(' .. digits(now), '+inf', 'LIMIT', ARGV[2], ARGV[3])
return {#alive, values(KEYS[3], alive)}
