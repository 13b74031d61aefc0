-- What every publish does: drop what was accepted before, and put messages in line.
-- KEYS: meta, dedupe, sleepers, plans, planned, then a group for every target.
-- ARGV: registry version, time, dedupe window, for how many milliseconds ids are kept ('' to leave that to a later
--       publish, which will come in time), plan of the batch, then serial and message by turns, then ids.

local meta, dedupe, sleepers, plans, planned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local KEPT = 5
local FIRST = 6
local now, window = clock(ARGV[2]), tonumber(ARGV[3])
local count, targets, identified, delayed = unpack(cmsgpack.unpack(ARGV[5]))
local LAST = FIRST + 2 * count - 1

local function serial_at(index) return ARGV[FIRST + 2 * index - 2] end
local function message_at(index) return ARGV[FIRST + 2 * index - 1] end

local dropped, drops, accepted = {}, false, {}

-- Which messages were accepted before, or come twice in this batch. An id counts only for the window, however long it
-- is kept.
local function drop_repetitions()
  if #identified == 0 then return end
  local seen = {}
  for first = LAST + 1, #ARGV, CHUNK do
    local scores = call('ZMSCORE', dedupe, unpack(ARGV, first, math.min(first + CHUNK - 1, #ARGV)))
    for offset, score in ipairs(scores) do
      local at = first + offset - 1
      local id = ARGV[at]
      if seen[id] or (score and tonumber(score) > now - window) then
        dropped[identified[at - LAST]], drops = true, true
      else
        seen[id] = true
        accepted[#accepted + 1] = id
      end
    end
  end
end

-- Last of all: an error before this must not make the next try look like a duplicate.
local function remember_ids()
  if #accepted > 0 then
    local marks, at = {}, digits(now)
    for index, id in ipairs(accepted) do
      marks[2 * index - 1], marks[2 * index] = at, id
    end
    many('ZADD', dedupe, marks)
  end
  if ARGV[4] ~= '' then
    call('ZREMRANGEBYSCORE', dedupe, '-inf', digits(now - window))
    call('PEXPIRE', dedupe, ARGV[4])
  end
end

local function is_anything_due(group)
  if call('EXISTS', group.line, group.later, group.plan) == 0 then return false end
  return call('LLEN', group.line) > 0 or call('ZCOUNT', group.later, '-inf', now) > 0
    or call('ZCOUNT', group.plan, '-inf', now) > 0
end

-- Gives a lone message straight to a worker that sleeps for lack of work, as if it had claimed it: that spares it the
-- way back here. Only once per sleep, and only if nothing was due before.
local function hand_over(group, sid, serial, message)
  local bell = not is_anything_due(group) and call('SPOP', group.idle)
  while bell do
    local channel, number, worker = sleeper_of(bell)
    local sleep = call('HGET', sleepers, worker)
    if sleep then
      call('HDEL', sleepers, worker)
      call('HSET', group.body, serial, message)
      call('HSET', group.own, serial, worker)
      if call('PUBLISH', channel, table.concat({number, sleep, sid, message}, ' ')) > 0 then return true end
      call('HDEL', group.own, serial)
    end
    bell = call('SPOP', group.idle)
  end
  return false
end

-- An unordered target: all messages, or those of certain numbers.
local function push(group, target)
  local indexes, paused, sid = target[2], target[3], target[4]
  local line, body = {}, {}
  if indexes == true and not drops then
    for at = FIRST, LAST, 2 do line[#line + 1] = ARGV[at] end
  else
    for number = 1, indexes == true and count or #indexes do
      local index = indexes == true and number or indexes[number]
      if not dropped[index] then
        line[#line + 1] = serial_at(index)
        body[#body + 1] = serial_at(index)
        body[#body + 1] = message_at(index)
      end
    end
    if #line == 0 then return end
  end
  if #line == 1 and not paused and hand_over(group, sid, line[1], body[2] or message_at(1)) then return end
  if #body > 0 then
    many('HSET', group.body, body)
  else
    for first = FIRST, LAST, CHUNK do
      call('HSET', group.body, unpack(ARGV, first, math.min(first + CHUNK - 1, LAST)))
    end
  end
  many('RPUSH', group.line, line)
  ring(group.idle, #line)
end
