-- Finds workers that are dead, and sees to it that they claim nothing more; answers their names, a bounded number, and
-- whether a subscription is being retired. A lease of 0 was given up by its worker; others run out.
-- KEYS: meta, leases, sleepers, since, retiring.
-- ARGV: time, this worker, lease, for how long a lease must have run out ('' if that does not count), for how long this
--       worker must have held its own without a break.

local meta, leases, sleepers, since, retiring = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, worker, lease, patience = clock(ARGV[1], meta), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local until_ = tonumber(call('ZSCORE', leases, worker)) or 0
if until_ <= 0 then return -2 end

-- After any time in which the server did not answer, or its clock was set forward, every lease may have run out although
-- its worker lives: then others get the time to renew theirs first. While it did answer, this worker renewed its own.
local over = 0
if ARGV[4] ~= '' then
  local held_since = tonumber(call('HGET', since, worker)) or now
  local heard = now - (until_ - lease) <= lease * 0.6
  if patience == 0 or (heard and now - held_since >= patience) then over = digits(now - ARGV[4]) end
end
local dead = {}
for _, it in ipairs(call('ZRANGEBYSCORE', leases, '-inf', over, 'LIMIT', 0, 50)) do
  if it ~= worker then
    dead[#dead + 1] = it
    call('ZADD', leases, 0, it)
    call('HDEL', sleepers, it)
  end
end
return {dead, call('EXISTS', retiring)}
