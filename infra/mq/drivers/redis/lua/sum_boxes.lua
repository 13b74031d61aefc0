-- Counts the deliveries in one page of claimed, blocked or parked mailboxes; returns the next cursor ('0' at the end), and
-- the number. KEYS: a group, the HASH or SET of mailboxes. ARGV: command that scans it, whether only claimed deliveries
-- count, cursor.

local group, set, keys = group_at(0), nil, {}
local page = call(ARGV[1], KEYS[GROUP + 1], ARGV[3], 'COUNT', 500)
for index = 1, #page[2], ARGV[1] == 'HSCAN' and 2 or 1 do keys[#keys + 1] = page[2][index] end
set = mailboxes_of(group)
load_boxes(set, keys)
local total = 0
for _, key in ipairs(keys) do
  local box = get_box(set, key)
  if box then total = total + box[ARGV[2] == '1' and CLAIMED or SIZE] end
end
return {page[1], total}
