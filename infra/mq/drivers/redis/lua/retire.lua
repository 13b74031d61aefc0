-- Starts to retire a subscription, or one event of it: from now on the registry does not have it, no delivery of it can be
-- claimed, and none is added. The steps of retire_step.lua remove its deliveries; a note in `retiring` stays until they are
-- done. Returns 1; -1 (outdated registry); -2 if a retirement of this subscription is in progress; {'worker', id} if a live
-- worker has the listener; {'backlog', number} if deliveries exist and `backlog` is "refuse".
-- KEYS: meta, leases, workers, retiring, a group, the line that the steps check.
-- ARGV: registry version, new version, new registry, time, sid, whether the subscription is ordered, event ('' for the
--       whole subscription), backlog, names of the subscription, channel for the notification of all processes, the note.

local meta, leases, workers, retiring, group, old = KEYS[1], KEYS[2], KEYS[3], KEYS[4], group_at(4), KEYS[4 + GROUP + 1]
if is_outdated(meta, ARGV[1]) then return -1 end
local now, sid, ordered, event, backlog = clock(ARGV[4], meta), ARGV[5], ARGV[6] == '1', ARGV[7], ARGV[8]
if call('HEXISTS', retiring, sid) == 1 then return -2 end

local function find_user()
  local names = {}
  for _, name in ipairs(cmsgpack.unpack(ARGV[9])) do names[name] = true end
  for _, worker in ipairs(call('ZRANGEBYSCORE', leases, '(' .. digits(now), '+inf')) do
    local who = call('HGET', workers, worker)
    for _, name in ipairs(who and cmsgpack.unpack(who)[1] or {}) do
      if names[name] then return worker end
    end
  end
end

if event == '' then
  local worker = find_user()
  if worker then return {'worker', worker} end
  local waiting = call('HLEN', group.body) + (ordered and 0 or call('LLEN', group.line))
  if waiting > 0 and backlog == 'refuse' then return {'backlog', tostring(waiting)} end
elseif not ordered and backlog ~= 'refuse' and call('EXISTS', group.line) == 1 then
  -- The steps check the renamed line from its end, and put deliveries of other events back before those that arrive
  -- meanwhile, in their order.
  call('RENAME', group.line, old)
end
call('HSET', retiring, sid, ARGV[11])
call('HSET', meta, 'v', ARGV[2], 'r', ARGV[3], 't', digits(now))
call('PUBLISH', ARGV[10], '')
return 1
