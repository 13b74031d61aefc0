-- Makes parked deliveries due whose events are known.
-- KEYS: meta, then a group for every subscription, then the parking places of its known events.
-- ARGV: registry version, time, per subscription whether it is ordered and how many parking places it has.

local meta = KEYS[1]
if is_outdated(meta, ARGV[1]) then return -1 end
local now, count = clock(ARGV[2]), 0
local wanted = cmsgpack.unpack(ARGV[3])
local parking = 1 + #wanted * GROUP

for number, it in ipairs(wanted) do
  local group, ordered = group_at(1 + (number - 1) * GROUP), it[1]
  for index = 1, it[2] do
    local parked = KEYS[parking + index]
    local ids = call('SMEMBERS', parked)
    if #ids > 0 then
      table.sort(ids)
      if ordered then
        promote_waiting(group, now)
        local set = mailboxes_of(group)
        load_boxes(set, ids)
        for _, key in ipairs(ids) do
          local box = get_box(set, key)
          if box and box[STATE] == PARKED then
            make_ready(set, key, box)
            count = count + 1
          end
        end
        write_boxes(set)
      else
        local later = {}
        for position, message in ipairs(values(group.body, ids)) do
          if message then
            later[#later + 1] = digits(now)
            later[#later + 1] = ids[position]
            count = count + 1
          end
        end
        many('ZADD', group.later, later)
      end
      call('DEL', parked)
      ring(group.idle, #ids)
    end
  end
  parking = parking + it[2]
end
return count
