-- Looks for what a worker owns of one subscription: answers where to go on ('0' at the end), and names of deliveries or
-- mailboxes. KEYS: a group. ARGV: worker, where to go on.

local group, found = group_at(0), {}
local page = call('HSCAN', group.own, ARGV[2], 'COUNT', 500)
for index = 1, #page[2], 2 do
  if page[2][index + 1] == ARGV[1] then found[#found + 1] = page[2][index] end
end
return {page[1], found}
