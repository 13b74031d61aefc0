-- Removes a subscription, or one event of it, with all that waits for it; answers how many deliveries that were, or
-- {refused by a worker, its id} or {refused by a backlog, its size}.
-- KEYS: meta, leases, workers, dead, deads, plans, planned, a group, then parking places.
-- ARGV: registry version, new version, new registry, time, sid, whether it is ordered, event ('' for all of it),
--       backlog, names of the subscription, channel that tells everyone.

local keys = {meta = KEYS[1], dead = KEYS[4], deads = KEYS[5]}
local leases, workers, plans, planned, group = KEYS[2], KEYS[3], KEYS[6], KEYS[7], group_at(7)
if is_outdated(keys.meta, ARGV[1]) then return -1 end
local now, sid, ordered, event, backlog = clock(ARGV[4]), ARGV[5], ARGV[6] == '1', ARGV[7], ARGV[8]
local PAGE = 500

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

local RETIRED = {otherwise = 'its subscription was retired'}

local function is_doomed(message)
  if event == '' then return true end
  local _, its = parts_of(message)
  return its == event
end

-- How many wait in an unordered line itself.
local function doomed_in_line()
  local length, count = call('LLEN', group.line), 0
  if event == '' then return length end
  for first = 0, length - 1, PAGE do
    for _, message in ipairs(call('LRANGE', group.line, first, first + PAGE - 1)) do
      if is_doomed(message) then count = count + 1 end
    end
  end
  return count
end

-- Once around: the others come back in their order.
local function clear_line()
  local left = call('LLEN', group.line)
  while left > 0 do
    local page, kept = call('LPOP', group.line, math.min(left, PAGE)), {}
    for _, message in ipairs(page) do
      if not is_doomed(message) then
        kept[#kept + 1] = message
      elseif backlog == 'dead' then
        bury_message(keys, group, sid, serial_of(message), message, now, RETIRED)
      end
    end
    many('RPUSH', group.line, kept)
    left = left - #page
  end
end

local function doomed()
  local found, cursor = {}, '0'
  repeat
    local page = call('HSCAN', group.body, cursor, 'COUNT', PAGE)
    cursor = page[1]
    for index = 1, #page[2], 2 do
      if is_doomed(page[2][index + 1]) then found[#found + 1] = page[2][index] end
    end
  until cursor == '0'
  table.sort(found)
  return found
end

-- A message delayed for several subscriptions still reaches the others.
local function unplan(member)
  local message = call('HGET', group.body, member:sub(PLANNED_FROM))
  local id = message and parts_of(message)
  local packed = id and call('HGET', planned, id)
  if not packed then return end
  local left = {}
  for _, it in ipairs(cmsgpack.unpack(packed)) do
    if it[1] == member then
      local sids = {}
      for _, other in ipairs(it[3]) do
        if other ~= sid then sids[#sids + 1] = other end
      end
      it[3] = sids
    end
    if #it[3] > 0 then left[#left + 1] = it else call('ZREM', plans, it[1] .. '\0' .. id) end
  end
  if #left > 0 then call('HSET', planned, id, cmsgpack.pack(left)) else call('HDEL', planned, id) end
end

-- Takes retired deliveries out of their mailboxes; a mailbox whose head was among them goes on.
local function empty_mailboxes(gone)
  local set, heads = mailboxes_of(group), {}
  for _, id in ipairs(gone) do
    local key, sequence = id:match('^(.*)%z(%d+)$')
    local box = key and get_box(set, key)
    if box then
      sequence = tonumber(sequence)
      if not heads[key] then heads[key] = {box[HEAD], sequences_of(set, key, box, box[CLAIMED])} end
      for _, claimed in ipairs(heads[key][2]) do
        if claimed == sequence then box[CLAIMED] = box[CLAIMED] - 1 end
      end
      box[SIZE] = box[SIZE] - 1
      set.changed[key] = true
    end
  end
  many('HDEL', group.body, gone)
  for key, before in pairs(heads) do
    local box, head = get_box(set, key), before[1]
    skip_holes(set, key, box)
    local head_gone = box[SIZE] == 0 or box[HEAD] ~= head
    if box[STATE] ~= OWNED and head_gone then
      call('ZREM', group.later, key)
      call('HDEL', group.block, key)
      if box[EVENT] then call('SREM', box[EVENT], key) end
      if box[STATE] ~= READY or box[SIZE] == 0 then
        if box[SIZE] == 0 then call('LREM', group.line, 0, key) end
        give_back(set, key, box)
      end
    end
  end
  write_boxes(set)
end

local function remove(gone)
  local planned_here = {}
  for _, member in ipairs(call('ZRANGE', group.plan, 0, -1)) do
    local message = call('HGET', group.body, member:sub(PLANNED_FROM))
    if event == '' or (message and is_doomed(message)) then
      unplan(member)
      planned_here[#planned_here + 1] = member
    end
  end
  many('ZREM', group.plan, planned_here)
  many('HDEL', group.past, gone)
  if event == '' then
    for index = 7 + 1, #KEYS do call('UNLINK', KEYS[index]) end
  elseif ordered then
    empty_mailboxes(gone)
  else
    many('HDEL', group.body, gone)
    many('HDEL', group.own, gone)
    many('ZREM', group.later, gone)
    for index = 7 + GROUP + 1, #KEYS do call('UNLINK', KEYS[index]) end
  end
end

if event == '' then
  local worker = user()
  if worker then return {'worker', worker} end
end
promote(group, ordered, now)
forget_due_plans(plans, planned, now)
local gone = doomed()
local total = #gone + (ordered and 0 or doomed_in_line())
if total > 0 and backlog == 'refuse' then return {'backlog', tostring(total)} end
if backlog == 'dead' then
  for _, id in ipairs(gone) do bury(keys, group, sid, id, now, RETIRED) end
end
-- A line that goes as a whole need not be looked through.
if not ordered and (event ~= '' or backlog == 'dead') then clear_line() end
remove(gone)
call('HSET', keys.meta, 'v', ARGV[2], 'r', ARGV[3], 't', digits(now))
call('PUBLISH', ARGV[10], '')
ring(group.idle, total)
return total
