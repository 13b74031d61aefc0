-- Searches one page of a subscription's claims for those of a worker; returns the next cursor ('0' at the end), and the
-- names of deliveries or mailboxes. KEYS: a group. ARGV: worker, cursor.

local group, found = group_at(0), {}
local page = call('HSCAN', group.own, ARGV[2], 'COUNT', 500)
for index = 1, #page[2], 2 do
  if page[2][index + 1] == ARGV[1] then found[#found + 1] = page[2][index] end
end
return {page[1], found}
