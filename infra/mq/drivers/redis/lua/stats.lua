-- Counts what subscriptions hold; in time that does not grow with their backlogs.
-- KEYS: meta, leases, workers, then a group for every subscription, then its parking places.
-- ARGV: registry version, time, per subscription its sid, whether it is ordered, how many parking places it has.

local meta, leases, workers = KEYS[1], KEYS[2], KEYS[3]
if is_outdated(meta, ARGV[1]) then return -1 end
local now = clock(ARGV[2])
local wanted = cmsgpack.unpack(ARGV[3])
local parking = 3 + #wanted * GROUP

-- The oldest is looked for among the first of each kind: with more of them, they stand in the order of their times.
local LOOK = 200

local function first_elsewhere(group, parks)
  local found, lists = {}, {
    call('ZRANGE', group.later, 0, LOOK - 1),
    call('HRANDFIELD', group.own, LOOK),
    call('HRANDFIELD', group.block, LOOK),
  }
  for _, parked in ipairs(parks) do lists[#lists + 1] = call('SRANDMEMBER', parked, LOOK) end
  for _, list in ipairs(lists) do
    for _, id in ipairs(list) do found[#found + 1] = id end
  end
  return found
end

local function heads_of(group, keys)
  local set, places = mailboxes_of(group), {}
  load_boxes(set, keys)
  for _, key in ipairs(keys) do
    local box = get_box(set, key)
    if box then places[#places + 1] = place(key, box[HEAD]) end
  end
  return places
end

local function oldest_of(group, ordered, parks)
  local oldest = false
  local function look_at(messages)
    for _, message in ipairs(messages) do
      if message then
        local _, _, _, at = parts_of(message)
        if not oldest or at < oldest then oldest = at end
      end
    end
  end
  local line, ids = call('LRANGE', group.line, 0, LOOK - 1), first_elsewhere(group, parks)
  if ordered then
    for _, key in ipairs(line) do ids[#ids + 1] = key end
    ids = heads_of(group, ids)
  else
    look_at(line)
  end
  for first = 1, #ids, 50 do
    look_at(call('HMGET', group.body, unpack(ids, first, math.min(first + 49, #ids))))
  end
  return oldest and string.format('%.17g', oldest) or ''
end

local function sizes_of(set, keys, part)
  local total = 0
  load_boxes(set, keys)
  for _, key in ipairs(keys) do
    local box = get_box(set, key)
    if box then total = total + box[part] end
  end
  return total
end

local function counts(group, ordered, parks)
  local parked, blocked, in_flight, in_line = 0, 0, 0, 0
  if ordered then
    local set = mailboxes_of(group)
    for _, it in ipairs(parks) do parked = parked + sizes_of(set, call('SMEMBERS', it), SIZE) end
    blocked = sizes_of(set, call('HKEYS', group.block), SIZE)
    in_flight = sizes_of(set, call('HKEYS', group.own), CLAIMED)
  else
    for _, it in ipairs(parks) do parked = parked + call('SCARD', it) end
    in_flight = call('HLEN', group.own)
    in_line = call('LLEN', group.line)
  end
  local retrying = call('ZCOUNT', group.later, '(' .. digits(now), '+inf')
  local scheduled = call('ZCARD', group.plan)
  local ready = in_line + call('HLEN', group.body) - scheduled - retrying - in_flight - parked - blocked
  return {ready, retrying, scheduled, in_flight, parked, blocked}
end

local answer = {}
for number, it in ipairs(wanted) do
  local group, parks = group_at(3 + (number - 1) * GROUP), {}
  for index = 1, it[3] do parks[index] = KEYS[parking + index] end
  parking = parking + it[3]
  promote(group, it[2], now)
  answer[number] = {
    counts(group, it[2], parks),
    oldest_of(group, it[2], parks),
    call('HGETALL', group.block),
    call('HGET', meta, 'd:' .. it[1]) or 0,
  }
end
local alive = call('ZRANGEBYSCORE', leases, '(' .. digits(now), '+inf')
return {answer, values(workers, alive)}
