-- Unblocks a mailbox: its head is retried, or becomes a dead letter. Returns 0 if it is not blocked, or if another claim
-- than the given one blocked it: a request that arrives late must not skip a delivery that was blocked since.
-- KEYS: meta, dead, deads, a group. ARGV: registry version, time, sid, key, whether to skip the head ('1'), fence.

local keys, group = {meta = KEYS[1], dead = KEYS[2], deads = KEYS[3]}, group_at(3)
if is_outdated(keys.meta, ARGV[1]) then return -1 end
local now, key = clock(ARGV[2], keys.meta), ARGV[4]
expect_large(keys.meta)
promote_plan(group, true, now, 500)
promote_waiting(group, now, 500)
local set = mailboxes_of(group)
local box = get_box(set, key)
if not box or box[STATE] ~= BLOCKED or box[FENCE] ~= tonumber(ARGV[6]) then return 0 end

local head = place(key, box[HEAD])
if ARGV[5] == '1' then
  add_dead_letter(keys, group, ARGV[3], head, now, {})
  call('HDEL', group.body, head)
  call('HDEL', group.past, head)
  box[HEAD], box[SIZE] = box[HEAD] + 1, box[SIZE] - 1
  skip_holes(set, key, box)
else
  local past = past_of(group, head)
  past[FAILURES] = 0
  keep_past(group, head, past)
end
release_mailbox(set, key, box)
write_boxes(set)
call('HDEL', group.block, key)
notify(group.idle, 1)
return 1
