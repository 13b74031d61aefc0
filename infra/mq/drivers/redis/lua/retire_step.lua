-- Removes a bounded number of deliveries of a retired subscription, or one event of it; returns the next phase, its cursor,
-- and the number of deliveries that the steps of all processes have removed. The phases are 'plan', 'line', 'body', 'end',
-- and '' when all is done. The phase 'count' only counts, first in the line and then elsewhere; it returns the number of
-- this step. The other phases do nothing without the note: a step that arrives late must not remove deliveries of a
-- subscription that was declared again.
-- KEYS: meta, dead, deads, plans, planned, retiring, a group, the line to check, the index of parking places, the number of
--       removed deliveries, and the places of its events.
-- ARGV: time, sid, whether the subscription is ordered, event ('' for the whole subscription), whether its deliveries become
--       dead letters ('1'), phase, cursor, the note, the error of dead letters without one.

local keys = {meta = KEYS[1], dead = KEYS[2], deads = KEYS[3]}
local plans, planned, retiring, group = KEYS[4], KEYS[5], KEYS[6], group_at(6)
local old, parks, removed = KEYS[6 + GROUP + 1], {index = KEYS[6 + GROUP + 2]}, KEYS[6 + GROUP + 3]
for index = 6 + GROUP + 4, #KEYS do parks[#parks + 1] = KEYS[index] end

-- Adds to the number of removed deliveries. It stays for an hour, for the caller whose last steps another process did.
local function add_removed(count)
  if count == 0 then return tonumber(call('GET', removed) or 0) end
  local total = call('INCRBY', removed, count)
  call('EXPIRE', removed, 3600)
  return total
end

if ARGV[6] ~= 'count' and call('HGET', retiring, ARGV[2]) ~= ARGV[8] then return {'', '0', add_removed(0)} end
local now, sid, ordered, event = clock(ARGV[1], KEYS[1]), ARGV[2], ARGV[3] == '1', ARGV[4]
local keeps_dead, phase, cursor, PAGE = ARGV[5] == '1', ARGV[6], ARGV[7], 200
expect_large(KEYS[1])
local RETIRED = {otherwise = ARGV[9]}

local function is_retired(message)
  if event == '' then return true end
  local _, its = parts_of(message)
  return its == event
end

local function size(message)
  left.bytes = left.bytes - #message
end

-- Returns the ids of the retired deliveries on the next page of `body`.
local function retired_page()
  local found, seen = {}, 0
  repeat
    local page = call('HSCAN', group.body, cursor, 'COUNT', LARGE)
    cursor = page[1]
    for index = 1, #page[2], 2 do
      seen = seen + 1
      size(page[2][index + 1])
      if is_retired(page[2][index + 1]) then found[#found + 1] = page[2][index] end
    end
  until cursor == '0' or seen >= PAGE or left.bytes <= 0
  table.sort(found)
  return found
end

-- Removes this subscription from a scheduled message, which its other subscriptions still receive.
local function unplan(member, message)
  local id = message and parts_of(message)
  local packed = id and call('HGET', planned, id)
  if not packed then return end
  local rest = {}
  for _, it in ipairs(cmsgpack.unpack(packed)) do
    if it[1] == member then
      local sids = {}
      for _, other in ipairs(it[3]) do
        if other ~= sid then sids[#sids + 1] = other end
      end
      it[3] = sids
    end
    if #it[3] > 0 then rest[#rest + 1] = it else call('ZREM', plans, it[1] .. '\0' .. id) end
  end
  if #rest > 0 then call('HSET', planned, id, cmsgpack.pack(rest)) else call('HDEL', planned, id) end
end

local function clear_plan()
  local count, seen = 0, 0
  repeat
    local page = call('ZSCAN', group.plan, cursor, 'COUNT', LARGE)
    cursor = page[1]
    for index = 1, #page[2], 2 do
      local member = page[2][index]
      local serial = member:sub(PLANNED_FROM)
      local message = call('HGET', group.body, serial)
      seen = seen + 1
      if message then size(message) end
      if not message or is_retired(message) then
        unplan(member, message)
        if message and keeps_dead then add_dead_message(keys, group, sid, serial, message, now, RETIRED) end
        call('ZREM', group.plan, member)
        count = count + call('HDEL', group.body, serial)
      end
    end
  until cursor == '0' or seen >= PAGE or left.bytes <= 0
  return count
end

-- Removes retired deliveries from the start of the line if the whole subscription is retired, else from the end of `old`.
local function clear_line()
  local from, count, kept = event == '' and group.line or old, 0, {}
  while count + #kept < PAGE and left.bytes > 0 do
    local page = call(event == '' and 'LPOP' or 'RPOP', from, LARGE) or {}
    if #page == 0 then break end
    for _, message in ipairs(page) do
      size(message)
      if not is_retired(message) then
        kept[#kept + 1] = message
      else
        if keeps_dead then add_dead_message(keys, group, sid, serial_of(message), message, now, RETIRED) end
        count = count + 1
      end
    end
  end
  many('LPUSH', group.line, kept)
  if #kept > 0 then notify(group.idle, #kept) end
  if call('EXISTS', from) == 0 then phase, cursor = 'body', '0' end
  return count
end

-- Removes retired deliveries from their mailboxes; releases a mailbox whose head was among them.
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
  local woken = 0
  for key, before in pairs(heads) do
    local box, head = get_box(set, key), before[1]
    -- Settlements of a claimed mailbox need its head now; other mailboxes find it at their next claim.
    skip_holes(set, key, box, box[STATE] ~= OWNED and 10 or WALK)
    local head_gone = box[SIZE] == 0 or box[HEAD] ~= head
    if box[STATE] ~= OWNED and head_gone then
      call('ZREM', group.later, key)
      call('HDEL', group.block, key)
      if box[EVENT] and call('SREM', box[EVENT], key) > 0 then close_place(parks, box[EVENT]) end
      if box[STATE] ~= READY or box[SIZE] == 0 then
        -- The line still has the key; the next claim skips a key without a mailbox.
        release_mailbox(set, key, box)
        woken = woken + 1
      end
    end
  end
  write_boxes(set)
  notify(group.idle, woken)
end

local function clear_body()
  local gone = retired_page()
  if keeps_dead then
    for _, id in ipairs(gone) do add_dead_letter(keys, group, sid, id, now, RETIRED) end
  end
  many('HDEL', group.past, gone)
  if event == '' then
    many('HDEL', group.body, gone)
  elseif ordered then
    empty_mailboxes(gone)
  else
    many('HDEL', group.body, gone)
    many('HDEL', group.own, gone)
    many('ZREM', group.later, gone)
    for _, place in ipairs(parking_places(parks)) do
      if many('SREM', place, gone) > 0 then close_place(parks, place) end
    end
  end
  return #gone
end

local function finish()
  local count = 0
  if event == '' then
    count = call('HLEN', group.body) + (ordered and 0 or call('LLEN', group.line))
    for _, place in ipairs(parking_places(parks)) do call('UNLINK', place) end
    call('UNLINK', parks.index, old)
    for index = 6 + 1, 6 + GROUP do call('UNLINK', KEYS[index]) end
  end
  call('HDEL', retiring, sid)
  return count
end

-- Counts retired deliveries in the line, from its end since claims shorten its start, and then in `body`.
local function count_page()
  if not ordered and cursor:sub(1, 1) == 'l' then
    local at, count, page = tonumber(cursor:sub(2)), 0, nil
    local stop = at + PAGE
    repeat
      page = call('LRANGE', group.line, -at - LARGE, -at - 1)
      at = at + LARGE
      for _, message in ipairs(page) do
        size(message)
        if is_retired(message) then count = count + 1 end
      end
    until #page == 0 or at >= stop or left.bytes <= 0
    cursor = #page > 0 and 'l' .. digits(at) or '0'
    return count
  end
  if ordered and cursor:sub(1, 1) == 'l' then cursor = '0' end
  local count = #retired_page()
  if cursor == '0' then phase = '' end
  return count
end

if phase == 'count' then
  local count = count_page()
  return {phase, cursor, count}
end
local count
if phase == 'plan' then
  count = clear_plan()
  if cursor == '0' then phase = 'line' end
elseif phase == 'line' then
  if ordered or (event == '' and not keeps_dead) then
    count, phase, cursor = 0, 'body', '0'
  else
    count = clear_line()
  end
elseif phase == 'body' then
  if event == '' and not keeps_dead then
    count, cursor = 0, '0'
  else
    count = clear_body()
  end
  if cursor == '0' then phase = 'end' end
else
  count, phase = finish(), ''
end
return {phase, cursor, add_removed(count)}
