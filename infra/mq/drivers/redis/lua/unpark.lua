-- Makes a bounded number of parked deliveries due whose needs are known; returns the number, and 1 if there may be more.
-- KEYS: meta, then a group for every subscription, then for each the index of its parking places and those of its known
--       needs.
-- ARGV: registry version, time, per subscription whether it is ordered, and the number of its known places.

local meta = KEYS[1]
if is_outdated(meta, ARGV[1]) then return -1 end
local now, count, steps = clock(ARGV[2], meta), 0, 500
local wanted = cmsgpack.unpack(ARGV[3])
local parking = 1 + #wanted * GROUP

local function unpark_mailboxes(group, keys)
  promote_waiting(group, now, 500)
  local set = mailboxes_of(group)
  load_boxes(set, keys)
  for _, key in ipairs(keys) do
    local box = get_box(set, key)
    if box and box[STATE] == PARKED then
      make_ready(set, key, box)
      count = count + 1
    end
  end
  write_boxes(set)
end

local function unpark_deliveries(group, ids)
  local later = {}
  for _, id in ipairs(ids) do
    if call('HEXISTS', group.body, id) == 1 then
      later[#later + 1] = digits(now)
      later[#later + 1] = id
      count = count + 1
    end
  end
  many('ZADD', group.later, later)
end

for number, it in ipairs(wanted) do
  local group, ordered, parks = group_at(1 + (number - 1) * GROUP), it[1], {index = KEYS[parking + 1]}
  for index = 1, it[2] do
    local place = KEYS[parking + 1 + index]
    local ids = steps > 0 and call('SRANDMEMBER', place, steps) or {}
    if #ids > 0 then
      table.sort(ids)
      if ordered then unpark_mailboxes(group, ids) else unpark_deliveries(group, ids) end
      many('SREM', place, ids)
      close_place(parks, place)
      notify(group.idle, #ids)
      steps = steps - #ids
    end
  end
  parking = parking + 1 + it[2]
end
return {count, steps > 0 and 0 or 1}
