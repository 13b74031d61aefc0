-- Marks the first unsettled delivery of a claim as running alone; returns 0 if the claim is fenced.
-- KEYS: a group. ARGV: worker, whether the subscription is ordered, delivery or mailbox, fence.

local group, worker, id = group_at(0), ARGV[1], ARGV[3]
if call('HGET', group.own, id) ~= worker then return 0 end
if ARGV[2] == '1' then
  local box = get_box(mailboxes_of(group), id)
  if not box or box[FENCE] ~= tonumber(ARGV[4]) or box[CLAIMED] < 1 then return 0 end
  id = place(id, box[HEAD])
end
local past = past_of(group, id)
if ARGV[2] ~= '1' and fence_of(past) ~= tonumber(ARGV[4]) then return 0 end
past[ALONE] = true
keep_past(group, id, past)
return 1
