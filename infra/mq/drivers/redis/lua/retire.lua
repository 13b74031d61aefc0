-- Begins to remove a subscription, or one event of it: from here on the registry knows nothing of it, nothing of it is
-- handed out and nothing new arrives. What waits for it goes in the steps of retire_step.lua, of which there is a note in
-- `retiring` until they are done. Answers 1, -2 if another part of the subscription is still being removed, or {refused by
-- a worker, its id} or {refused by a backlog, its size}.
-- KEYS: meta, leases, workers, retiring, a group, lines that are looked through.
-- ARGV: registry version, new version, new registry, time, sid, whether it is ordered, event ('' for all of it),
--       backlog, names of the subscription, channel that tells everyone, the note.

local meta, leases, workers, retiring, group, old = KEYS[1], KEYS[2], KEYS[3], KEYS[4], group_at(4), KEYS[4 + GROUP + 1]
if is_outdated(meta, ARGV[1]) then return -1 end
local now, sid, ordered, event, backlog = clock(ARGV[4], meta), ARGV[5], ARGV[6] == '1', ARGV[7], ARGV[8]
if call('HEXISTS', retiring, sid) == 1 then return -2 end

local function user()
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
  local worker = user()
  if worker then return {'worker', worker} end
  local waiting = call('HLEN', group.body) + (ordered and 0 or call('LLEN', group.line))
  if waiting > 0 and backlog == 'refuse' then return {'backlog', tostring(waiting)} end
elseif not ordered and backlog ~= 'refuse' and call('EXISTS', group.line) == 1 then
  -- The line is looked through from its end; what stays comes back in its order, before what arrives meanwhile.
  call('RENAME', group.line, old)
end
call('HSET', retiring, sid, ARGV[11])
call('HSET', meta, 'v', ARGV[2], 'r', ARGV[3], 't', digits(now))
call('PUBLISH', ARGV[10], '')
return 1
