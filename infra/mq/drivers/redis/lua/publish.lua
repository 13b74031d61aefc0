-- Accepts a batch of messages, all or none: one delivery for every subscription of each event.
-- KEYS: meta, accepted, dedupe, waiting workers, plans, planned, resent, then a group for every target.
-- ARGV: registry version, time, dedupe window, milliseconds for which to store ids ('' to delete no old ids in this call),
--       routing of the batch, messages that may be sent again after the window ('' for none), then the messages, then
--       marks of events and ids.
-- Returns the number of expired ids left to delete, or -1 (outdated registry).

local meta, marks, older, waiting, plans, planned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local resent = KEYS[7]
local KEPT = 7
local FIRST = 7
-- The publisher took the targets from its copy of the registry, which must be current.
if is_outdated(meta, ARGV[1]) then return -1 end
local now = clock(ARGV[2], meta)
local since = now - ARGV[3]
expect_large(meta)
-- `identified`: the numbers of the messages with `dedupe`, or true for all.
local count, targets, identified, delayed = unpack(cmsgpack.unpack(ARGV[5]))
local LAST = FIRST + count - 1

local function message_at(index) return ARGV[FIRST + index - 1] end

local dropped = {}
local repetitions, has_older = mark_ids(marks, older, LAST + 1, #ARGV, now, since)
repetitions = repetitions or {}
local carried = ARGV[6] ~= '' and cmsgpack.unpack(ARGV[6])
if carried then find_resent(resent, LAST, carried, repetitions) end
for place = LAST + 1, #ARGV do
  if repetitions[place] then
    dropped[identified == true and place - LAST or identified[place - LAST]] = true
  end
end

-- Adds messages to an unordered target: all, or those with certain numbers.
local function append_unordered(group, target)
  local indexes, messages = target[2], {}
  for number = 1, indexes == true and count or #indexes do
    local index = indexes == true and number or indexes[number]
    if not dropped[index] then messages[#messages + 1] = message_at(index) end
  end
  local given, waiter = false, #messages > 0 and call('SPOP', group.idle)
  if waiter and #messages == 1 and not target[3] then
    given, waiter = hand_over(group, now, waiting, waiter, target[4], messages[1])
  end
  if given then return end
  many('RPUSH', group.line, messages)
  if waiter then notify(group.idle, #messages, waiter) end
end

-- More scheduled deliveries are due than one run promotes: these messages wait behind them.
local function postpone(group, by_key)
  for _, entry in ipairs(by_key) do
    for _, index in ipairs(entry[2]) do
      if not dropped[index] then
        local message = message_at(index)
        call('HSET', group.body, serial_of(message), message)
        call('ZADD', group.plan, digits(now), digits(next_numbers(meta, 1)) .. serial_of(message))
      end
    end
  end
  notify(group.idle, 1)
end

-- Adds messages to an ordered target: the messages of each key.
local function append_ordered(group, by_key)
  promote_plan(group, true, now, 500)
  if is_due(group.plan, now) then return postpone(group, by_key) end
  local set, body, keys = mailboxes_of(group), {}, {}
  for index, entry in ipairs(by_key) do keys[index] = entry[1] end
  load_boxes(set, keys)
  for _, entry in ipairs(by_key) do
    local key, indexes = entry[1], {}
    for _, index in ipairs(entry[2]) do
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
  notify(group.idle, woken)
end

-- Schedules a message. If its due time has passed by the server's clock, it is due at once.
local function schedule(it)
  local index, due, id, sids, numbers = it[1], it[2], it[3], it[4], it[5]
  if dropped[index] then return end
  local message = message_at(index)
  local serial = serial_of(message)
  -- The number in front keeps messages of one due time in the order of acceptance.
  local member = digits(next_numbers(meta, 1)) .. serial
  for _, number in ipairs(numbers) do
    local group = group_at(KEPT + number * GROUP)
    call('HSET', group.body, serial, message)
    call('ZADD', group.plan, due, member)
    notify(group.idle, 1)
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
    -- A target may get scheduled messages alone.
    if not target[1] then
      append_unordered(group, target)
    elseif #target[2] > 0 then
      append_ordered(group, target[2])
    end
  end
  for _, it in ipairs(delayed) do schedule(it) end
  if carried then mark_resent(resent, LAST, carried, repetitions, now) end
end)

if has_older then mark_older(older, LAST + 1, #ARGV, repetitions, now) end
return tidy_ids(marks, since, ARGV[4], count)
