-- Gives back, uncharged, what a worker owns, but for what it keeps; forgets the worker unless it keeps something.
-- KEYS: meta, leases, workers, sleepers, then a group for every subscription.
-- ARGV: registry version, time, worker, per subscription whether it is ordered and what is kept.

local meta, leases, workers = KEYS[1], KEYS[2], KEYS[3]
if is_outdated(meta, ARGV[1]) then return -1 end
local now, worker = clock(ARGV[2]), ARGV[3]
if (tonumber(call('ZSCORE', leases, worker)) or 0) <= 0 then return -2 end

local keeps = false
for number, it in ipairs(cmsgpack.unpack(ARGV[4])) do
  local kept = {}
  for _, id in ipairs(it[2]) do
    kept[id] = true
    keeps = true
  end
  local group = group_at(4 + (number - 1) * GROUP)
  forget_bells(group, {[worker] = true})
  take_from(group, it[1], {[worker] = true}, kept, now, end_isolation)
end
call('HDEL', workers, worker)
call('HDEL', KEYS[4], worker)
if not keeps then call('ZREM', leases, worker) end
return 0
