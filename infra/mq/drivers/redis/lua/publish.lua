-- Accepts a batch of messages, all or none: one delivery for every subscription that the registry has.
-- KEYS: meta, dedupe, plans, planned, leases, sleepers, then a group for every target.
-- ARGV: registry version, time, dedupe window, plan of the batch, messages.

local meta, dedupe, plans, planned, leases, sleepers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local KEPT = 6
-- The publisher found the targets in its copy of the registry: it must be the present one.
if is_outdated(meta, ARGV[1]) then return -1 end
local now, window = clock(ARGV[2]), tonumber(ARGV[3])
local targets, identified, delayed = unpack(cmsgpack.unpack(ARGV[4]))
local FIRST = 4

local dropped, accepted = {}, {}
if #identified > 0 then
  call('ZREMRANGEBYSCORE', dedupe, '-inf', now - window)
  for _, it in ipairs(identified) do
    local index, id = it[1], it[2]
    if accepted[id] or call('ZSCORE', dedupe, id) then
      dropped[index] = true
    else
      accepted[id] = true
    end
  end
end

-- Gives a lone message straight to a worker that sleeps for lack of work, as if it had claimed it: that spares it the
-- way back here. Only once per sleep, and only if nothing was due before.
local function hand_over(group, sid, message)
  if call('SCARD', group.idle) == 0 or call('LLEN', group.line) > 0 then return false end
  for _, key in ipairs({group.later, group.plan}) do
    if call('ZCOUNT', key, '-inf', now) > 0 then return false end
  end
  while true do
    local bell = call('SPOP', group.idle)
    if not bell then return false end
    local channel, number, worker = sleeper_of(bell)
    local sleep = call('HGET', sleepers, worker)
    if sleep and (tonumber(call('ZSCORE', leases, worker)) or 0) > 0 then
      local serial = serial_of(message)
      call('HDEL', sleepers, worker)
      call('HSET', group.body, serial, message)
      call('HSET', group.own, serial, worker)
      if call('PUBLISH', channel, table.concat({number, sleep, sid, message}, ' ')) > 0 then return true end
      call('HDEL', group.own, serial)
    end
  end
end

local function push(group, target)
  local indexes, paused, sid = target[2], target[3], target[4]
  if #indexes == 1 and not paused and not dropped[indexes[1]]
    and hand_over(group, sid, ARGV[FIRST + indexes[1]]) then return end
  local line, body = {}, {}
  for _, index in ipairs(indexes) do
    if not dropped[index] then
      local message = ARGV[FIRST + index]
      local serial = serial_of(message)
      line[#line + 1] = serial
      body[#body + 1] = serial
      body[#body + 1] = message
    end
  end
  if #line == 0 then return end
  many('HSET', group.body, body)
  many('RPUSH', group.line, line)
  ring(group.idle, #line)
end

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
        body[#body + 1] = ARGV[FIRST + index]
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
  local message = ARGV[FIRST + index]
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

for number, target in ipairs(targets) do
  local group = group_at(KEPT + (number - 1) * GROUP)
  if #target[2] > 0 then
    if target[1] then post(group, target[2]) else push(group, target) end
  end
end
for _, it in ipairs(delayed) do schedule(it) end

-- Last: an error before this must not make the next try look like a duplicate.
if next(accepted) then
  local marks = {}
  for id in pairs(accepted) do
    marks[#marks + 1] = digits(now)
    marks[#marks + 1] = id
  end
  many('ZADD', dedupe, marks)
  call('PEXPIRE', dedupe, math.ceil(window / 1000))
end
return 0
