-- Accepts messages that go to unordered subscriptions alone, and at once: most are such, and this is all they need.

if is_outdated(meta, ARGV[1]) then return -1 end
drop_repetitions()
for number, target in ipairs(targets) do push(group_at(KEPT + (number - 1) * GROUP), target) end
remember_ids()
return 0
