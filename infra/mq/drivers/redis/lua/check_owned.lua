-- Answers which of the named deliveries, or mailboxes with their fences, a worker does not own.
-- KEYS: a group. ARGV: worker, whether it is ordered, names, fences of mailboxes.

local group, ordered = group_at(0), ARGV[2] == '1'
local names, fences, missing = cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4]), {}
local set = mailboxes_of(group)
if ordered then load_boxes(set, names) end
for index, owner in ipairs(values(group.own, names)) do
  local box = ordered and get_box(set, names[index])
  if owner ~= ARGV[1] or (ordered and not (box and box[FENCE] == fences[index])) then
    missing[#missing + 1] = names[index]
  end
end
return missing
