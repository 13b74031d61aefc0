-- Turns a dead letter back into a delivery of its own subscription; returns 0 if it does not exist.
-- KEYS: meta, dead, deads, a group. ARGV: registry version, time, number, sid, whether the subscription is ordered.

local meta, dead, deads, group = KEYS[1], KEYS[2], KEYS[3], group_at(3)
if is_outdated(meta, ARGV[1]) then return -1 end
local letter = call('HGET', dead, ARGV[3])
if not letter then return 0 end

-- A new serial, so that late settlements of its former claims do not end it.
local old = letter:sub(9 + tonumber(letter:sub(1, 8)))
local serial = digits(next_numbers(meta, 1)) .. string.rep('-', 15)
local message = old:sub(1, SERIAL_FROM - 1) .. serial .. old:sub(SERIAL_TO + 1)
if ARGV[5] == '1' then
  expect_large(meta)
  promote_plan(group, true, clock(ARGV[2], meta), 500)
  local _, _, key = parts_of(message)
  local set = mailboxes_of(group)
  call('HSET', group.body, place(key or '', append(set, key or '', 1)), message)
  write_boxes(set)
else
  call('RPUSH', group.line, message)
end
call('HDEL', dead, ARGV[3])
call('ZREMRANGEBYSCORE', deads, ARGV[3], ARGV[3])
if call('HINCRBY', meta, 'd:' .. ARGV[4], -1) <= 0 then call('HDEL', meta, 'd:' .. ARGV[4]) end
notify(group.idle, 1)
return 1
