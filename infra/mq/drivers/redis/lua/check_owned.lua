-- Returns those of the named deliveries, or mailboxes, that a worker does not own with the given fence.
-- KEYS: a group. ARGV: worker, whether the subscription is ordered, names, fences.

local group, ordered = group_at(0), ARGV[2] == '1'
local names, fences, missing = cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4]), {}
local set, remembers = mailboxes_of(group), has_past(group)
if ordered then load_boxes(set, names) end

local function present_fence(name)
  if not ordered then return remembers and fence_of(past_of(group, name)) or 1 end
  local box = get_box(set, name)
  return box and box[FENCE]
end

for index, owner in ipairs(values(group.own, names)) do
  if owner ~= ARGV[1] or present_fence(names[index]) ~= fences[index] then missing[#missing + 1] = names[index] end
end
return missing
