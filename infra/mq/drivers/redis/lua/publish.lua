-- Accepts a batch of messages, all or none: one delivery for every subscription that the registry has.

-- The publisher found the targets in its copy of the registry: it must be the present one.
if is_outdated(meta, ARGV[1]) then return -1 end
drop_repetitions()

local function post(group, letters)
  promote_plan(group, true, now)
  local set, body, keys = mailboxes_of(group), {}, {}
  for index, letter in ipairs(letters) do keys[index] = letter[1] end
  load_boxes(set, keys)
  for _, letter in ipairs(letters) do
    local key, indexes = letter[1], {}
    for _, index in ipairs(letter[2]) do
      if not dropped[index] then indexes[#indexes + 1] = index end
    end
    if #indexes > 0 then
      local sequence = append(set, key, #indexes)
      for _, index in ipairs(indexes) do
        body[#body + 1] = place(key, sequence)
        body[#body + 1] = message_at(index)
        sequence = sequence + 1
      end
    end
  end
  local woken = #set.ready
  many('HSET', group.body, body)
  write_boxes(set)
  ring(group.idle, woken)
end

-- Its due time may be over by the broker's clock: then it simply is due at once, wherever it is looked for.
local function schedule(it)
  local index, due, id, sids, numbers = it[1], it[2], it[3], it[4], it[5]
  if dropped[index] then return end
  local serial, message = serial_at(index), message_at(index)
  -- With a number in front, those of one time stay in the order of their acceptance.
  local member = digits(next_numbers(meta, 1)) .. serial
  for _, number in ipairs(numbers) do
    local group = group_at(KEPT + number * GROUP)
    call('HSET', group.body, serial, message)
    call('ZADD', group.plan, due, member)
    ring(group.idle, 1)
  end
  local packed = call('HGET', planned, id)
  local entries = packed and cmsgpack.unpack(packed) or {}
  entries[#entries + 1] = {member, due, sids}
  call('HSET', planned, id, cmsgpack.pack(entries))
  call('ZADD', plans, due, member .. '\0' .. id)
end

for number, target in ipairs(targets) do
  local group = group_at(KEPT + (number - 1) * GROUP)
  -- Those with delayed messages alone are targets, too.
  if target[1] then
    if #target[2] > 0 then post(group, target[2]) end
  elseif target[2] == true or #target[2] > 0 then
    push(group, target)
  end
end
for _, it in ipairs(delayed) do schedule(it) end

remember_ids()
return 0
