-- Finds dead workers and prevents further claims of theirs; returns a bounded number of names, and whether a retirement is
-- in progress; or -2 if this worker's own lease is lost. A lease of 0 was abandoned.
-- KEYS: meta, leases, waiting workers, since, retiring.
-- ARGV: time, this worker, lease, time since the expiry after which a worker is dead ('' if only abandoned leases count),
--       time for which this worker must have held its own lease without a break, time within which live workers renew
--       their leases.

local meta, leases, waiting, since, retiring = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, worker, lease, patience = clock(ARGV[1], meta), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local until_ = tonumber(call('ZSCORE', leases, worker)) or 0
if until_ <= 0 then return -2 end

-- After a time in which the server did not answer, or after its clock was set forward, the lease of a live worker may have
-- expired, and the worker must be able to renew it first. This worker's own renewals show that the server answered.
local over = 0
if ARGV[4] ~= '' then
  local held_since = tonumber(call('HGET', since, worker)) or now
  local heard = now - (until_ - lease) <= tonumber(ARGV[6])
  if patience == 0 or (heard and now - held_since >= patience) then over = digits(now - ARGV[4]) end
end
local dead = {}
for _, it in ipairs(call('ZRANGEBYSCORE', leases, '-inf', over, 'LIMIT', 0, 50)) do
  if it ~= worker then
    dead[#dead + 1] = it
    call('ZADD', leases, 0, it)
    call('HDEL', waiting, it)
  end
end
return {dead, call('EXISTS', retiring)}
