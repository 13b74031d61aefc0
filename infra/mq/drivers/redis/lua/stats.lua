-- Counts the deliveries of subscriptions, in time that does not grow with their backlogs; of the first subscriptions alone,
-- if their messages are large. Sums over more than a few mailboxes are left to sum_boxes.lua; the answer then has -1.
-- KEYS: meta, then a group for every subscription, then for each the index of its parking places and those of its events.
-- ARGV: registry version, time, per subscription its sid, whether it is ordered, number of its parking places, and retired
--       sids of its name.

local meta = KEYS[1]
if is_outdated(meta, ARGV[1]) then return -1 end
local now = clock(ARGV[2], meta)
local wanted = cmsgpack.unpack(ARGV[3])
local parking = 1 + #wanted * GROUP

-- The oldest delivery is searched among the first of each kind, which are in the order of their times.
local LOOK, LOOK_BYTES = 200, 512 * 1024
-- The largest number of mailboxes, or blocked keys, to read here.
local FEW = 200

local function first_elsewhere(group, places)
  local found, lists = {}, {
    call('ZRANGE', group.later, 0, LOOK - 1),
    call('HRANDFIELD', group.own, LOOK),
    call('HRANDFIELD', group.block, LOOK),
  }
  for _, place in ipairs(places) do lists[#lists + 1] = call('SRANDMEMBER', place, LOOK) end
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

local function oldest_of(group, ordered, places)
  local oldest, bytes = false, LOOK_BYTES
  -- Reads as many messages at a time as fit, judged by the size of those before.
  local function look_through(total, read)
    local at, page = 1, 1
    while at <= total and bytes > 0 do
      local before = bytes
      for _, message in ipairs(read(at, math.min(at + page, total + 1) - 1)) do
        if message then
          local _, _, _, published_at = parts_of(message)
          if not oldest or published_at < oldest then oldest = published_at end
          bytes = bytes - #message
        end
      end
      at = at + page
      page = math.max(1, math.min(LOOK, math.floor(bytes * page / math.max(1, before - bytes))))
    end
    left.bytes = left.bytes - (LOOK_BYTES - bytes)
  end
  local ids = first_elsewhere(group, places)
  if ordered then
    for _, key in ipairs(call('LRANGE', group.line, 0, LOOK - 1)) do ids[#ids + 1] = key end
    ids = heads_of(group, ids)
  else
    look_through(math.min(LOOK, call('LLEN', group.line)), function(first, last)
      return call('LRANGE', group.line, first - 1, last - 1)
    end)
    bytes = LOOK_BYTES
  end
  look_through(#ids, function(first, last) return call('HMGET', group.body, unpack(ids, first, last)) end)
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

local function counts(group, ordered, places)
  local parked, blocked, in_flight, in_line = 0, 0, 0, 0
  if not ordered then
    for _, place in ipairs(places) do parked = parked + call('SCARD', place) end
    in_flight = call('HLEN', group.own)
    in_line = call('LLEN', group.line)
  else
    local boxes = call('HLEN', group.block) + call('HLEN', group.own)
    for _, place in ipairs(places) do boxes = boxes + call('SCARD', place) end
    if boxes > FEW then
      parked, blocked, in_flight = -1, -1, -1
    else
      local set = mailboxes_of(group)
      for _, place in ipairs(places) do parked = parked + sizes_of(set, call('SMEMBERS', place), SIZE) end
      blocked = sizes_of(set, call('HKEYS', group.block), SIZE)
      in_flight = sizes_of(set, call('HKEYS', group.own), CLAIMED)
    end
  end
  local retrying = call('ZCOUNT', group.later, '(' .. digits(now), '+inf')
  local scheduled = call('ZCOUNT', group.plan, '(' .. digits(now), '+inf')
  return {in_line + call('HLEN', group.body), retrying, scheduled, in_flight, parked, blocked}
end

local function dead_of(sid, former)
  local count = tonumber(call('HGET', meta, 'd:' .. sid)) or 0
  for _, other in ipairs(former) do count = count + (tonumber(call('HGET', meta, 'd:' .. other)) or 0) end
  return count
end

local answer = {}
for number, it in ipairs(wanted) do
  if left.bytes <= 0 then break end
  local group, parks = group_at(1 + (number - 1) * GROUP), {index = KEYS[parking + 1]}
  for index = 1, it[3] do parks[index] = KEYS[parking + 1 + index] end
  parking = parking + 1 + it[3]
  local places = parking_places(parks)
  answer[number] = {
    counts(group, it[2], places),
    oldest_of(group, it[2], places),
    call('HLEN', group.block) <= FEW and call('HGETALL', group.block) or false,
    dead_of(it[1], it[4]),
    places,
  }
end
return answer
