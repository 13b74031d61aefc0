-- Cancels a scheduled message for all its subscriptions, or only checks whether that is possible; returns the number of
-- cancelled messages with this id, or -1 if the entries have changed.
-- KEYS: meta, plans, planned, accepted, resent, dedupe, then plan and messages of every subscription in the entries.
-- ARGV: time, id, the entries as the caller read them, whether to cancel ('1').

local plans, planned = KEYS[2], KEYS[3]
if call('HGET', planned, ARGV[2]) ~= ARGV[3] then return -1 end
local now, done, number, rest = clock(ARGV[1], KEYS[1]), 0, 6, {}

-- The id of a cancelled message can be published again at once.
local function forget_id(message)
  local _, event = parts_of(message)
  call('ZREM', KEYS[4], event .. '\0' .. ARGV[2])
  call('ZREM', KEYS[5], event .. '\0' .. ARGV[2])
  call('ZREM', KEYS[6], ARGV[2])
end

for _, it in ipairs(cmsgpack.unpack(ARGV[3])) do
  local member, due, sids = it[1], it[2], it[3]
  if due > now then done = done + 1 else rest[#rest + 1] = it end
  for _ = 1, #sids do
    if due > now and ARGV[4] == '1' then
      local message = call('HGET', KEYS[number + 2], member:sub(PLANNED_FROM))
      if message then forget_id(message) end
      call('ZREM', KEYS[number + 1], member)
      call('HDEL', KEYS[number + 2], member:sub(PLANNED_FROM))
    end
    number = number + 2
  end
  if due > now and ARGV[4] == '1' then call('ZREM', plans, member .. '\0' .. ARGV[2]) end
end
if done > 0 and ARGV[4] == '1' then
  if #rest > 0 then
    call('HSET', planned, ARGV[2], cmsgpack.pack(rest))
  else
    call('HDEL', planned, ARGV[2])
  end
end
return done
