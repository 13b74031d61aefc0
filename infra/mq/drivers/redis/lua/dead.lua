-- Dead letters: HASH of number -> record and message, and ZSET of "number:subscription:event" by number.

-- Stores a dead letter for the delivery `id`; the caller removes the delivery from its group.
local function add_dead_message(keys, group, sid, id, message, now, ending)
  local past = past_of(group, id)
  local number = digits(next_numbers(keys.meta, 1))
  local record = cmsgpack.pack({
    ending.error or past[ERROR] or ending.otherwise or '',
    ending.traceback or past[TRACEBACK] or '',
    past[FAILURES] + (ending.charge and 1 or 0),
    past[CRASHES],
    digits(now),
  })
  local _, event = parts_of(message)
  call('HSET', keys.dead, number, string.format('%08d', #record) .. record .. message)
  call('ZADD', keys.deads, number, number .. ':' .. sid .. ':' .. event)
  call('HINCRBY', keys.meta, 'd:' .. sid, 1)
end

local function add_dead_letter(keys, group, sid, id, now, ending)
  local message = call('HGET', group.body, id)
  if message then add_dead_message(keys, group, sid, id, message, now, ending) end
end
