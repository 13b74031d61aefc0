-- Takes over from dead workers. A lease of 0 was given up by its worker; others run out.
-- KEYS: meta, leases, workers, sleepers, then a group for every subscription.
-- ARGV: registry version, time, this worker, for how long a lease must have run out ('' if that does not count),
--       which subscriptions are ordered.

local meta, leases, workers = KEYS[1], KEYS[2], KEYS[3]
if is_outdated(meta, ARGV[1]) then return -1 end
local now = clock(ARGV[2])
if (tonumber(call('ZSCORE', leases, ARGV[3])) or 0) <= 0 then return -2 end

local dead, found = {}, {}
local over = ARGV[4] ~= '' and digits(now - ARGV[4]) or 0
for _, worker in ipairs(call('ZRANGEBYSCORE', leases, '-inf', over)) do
  if worker ~= ARGV[3] then
    dead[worker] = true
    found[#found + 1] = worker
  end
end
if #found == 0 then return 0 end

local count = 0
for number, ordered in ipairs(cmsgpack.unpack(ARGV[5])) do
  local group = group_at(4 + (number - 1) * GROUP)
  forget_bells(group, dead)
  count = count + take_from(group, ordered, dead, {}, now, charge_death)
end
many('HDEL', workers, found)
many('HDEL', KEYS[4], found)
many('ZREM', leases, found)
return count
