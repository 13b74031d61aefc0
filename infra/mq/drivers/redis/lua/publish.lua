-- Accepts a batch of messages, all or none: one delivery for every subscription that the registry has.
-- KEYS: meta, accepted, dedupe, sleepers, plans, planned, resent, then a group for every target.
-- ARGV: registry version, time, dedupe window, for how many milliseconds ids are kept ('' to leave that to a later
--       publish, which will come in time), plan of the batch, which messages may be sent again after the window ('' for
--       none), then the messages, then events with ids.
-- Answers how many ids are still to be forgotten, or -1.

local meta, marks, older, sleepers, plans, planned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local resent = KEYS[7]
local KEPT = 7
local FIRST = 7
-- The publisher found the targets in its copy of the registry: it must be the present one.
if is_outdated(meta, ARGV[1]) then return -1 end
local now = clock(ARGV[2], meta)
local since = now - ARGV[3]
expect_large(meta)
-- Which messages have an id that is accepted once: their numbers, or true for all.
local count, targets, identified, delayed = unpack(cmsgpack.unpack(ARGV[5]))
local LAST = FIRST + count - 1

local function message_at(index) return ARGV[FIRST + index - 1] end

local dropped = {}
local repetitions = mark_ids(marks, older, LAST + 1, #ARGV, now, since) or {}
local carried = ARGV[6] ~= '' and cmsgpack.unpack(ARGV[6])
if carried then find_resent(resent, LAST, carried, repetitions) end
for place = LAST + 1, #ARGV do
  if repetitions[place] then
    dropped[identified == true and place - LAST or identified[place - LAST]] = true
  end
end

-- An unordered target: all messages, or those of certain numbers.
local function send(group, target)
  local indexes, messages = target[2], {}
  for number = 1, indexes == true and count or #indexes do
    local index = indexes == true and number or indexes[number]
    if not dropped[index] then messages[#messages + 1] = message_at(index) end
  end
  local given, bell = false, #messages > 0 and call('SPOP', group.idle)
  if bell and #messages == 1 and not target[3] then
    given, bell = hand_over(group, now, sleepers, bell, target[4], messages[1])
  end
  if given then return end
  many('RPUSH', group.line, messages)
  if bell then ring(group.idle, #messages, bell) end
end

-- More is due than can take its place now: what comes after it waits for its place, too.
local function post_later(group, letters)
  for _, letter in ipairs(letters) do
    for _, index in ipairs(letter[2]) do
      if not dropped[index] then
        local message = message_at(index)
        call('HSET', group.body, serial_of(message), message)
        call('ZADD', group.plan, digits(now), digits(next_numbers(meta, 1)) .. serial_of(message))
      end
    end
  end
  ring(group.idle, 1)
end

-- An ordered target: the messages of every key.
local function post(group, letters)
  promote_plan(group, true, now, 500)
  if is_due(group.plan, now) then return post_later(group, letters) end
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
  local message = message_at(index)
  local serial = serial_of(message)
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

marked(marks, LAST + 1, #ARGV, repetitions, function()
  for number, target in ipairs(targets) do
    local group = group_at(KEPT + (number - 1) * GROUP)
    -- Those with delayed messages alone are targets, too.
    if not target[1] then
      send(group, target)
    elseif #target[2] > 0 then
      post(group, target[2])
    end
  end
  for _, it in ipairs(delayed) do schedule(it) end
  if carried then mark_resent(resent, LAST, carried, repetitions, now) end
end)

return tidy_ids(marks, since, ARGV[4], count)
