-- The first part of every script: the clock and notifications. Each run of a script creates all of its functions again,
-- so the most frequent scripts include this part alone.

local call = redis.call

-- Whether a client's copy of the registry is outdated. Before the first declaration the version is ''.
local function is_outdated(meta, version) return (call('HGET', meta, 'v') or '') ~= version end

local function digits(number) return string.format('%.0f', number) end

local SECOND = 1000000

-- The queue's clock, in microseconds since the epoch: the server's, or the time that a test gives. It never goes back.
-- After the server's clock was set back, this clock goes on and runs a tenth slower until both agree: otherwise all due
-- times and leases would be late by as much as the clock was set back.
-- `meta` stores the latest time, to within a second, and by how much this clock is ahead.
local function clock(given, meta)
  local now = tonumber(given)
  if not now then
    local time = call('TIME')
    now = time[1] * SECOND + time[2]
  end
  local known = call('HMGET', meta, 'h', 's')
  local high, ahead = tonumber(known[1]) or 0, tonumber(known[2]) or 0
  now = now + ahead
  local passed = now - high
  if passed < -SECOND then
    now = high
    call('HSET', meta, 's', digits(ahead - passed))
  elseif passed >= SECOND then
    if ahead > 0 then
      local slower = math.floor(math.min(ahead, passed / 10))
      now = now - slower
      call('HSET', meta, 's', digits(ahead - slower))
    end
    call('HSET', meta, 'h', digits(now))
  elseif passed < 0 then
    now = high
  end
  return now
end

-- A stored message is a packed array that begins with its serial.
local SERIAL_FROM, SERIAL_TO = 3, 33
local function serial_of(message) return message:sub(SERIAL_FROM, SERIAL_TO) end

local function split_waiter(waiter) return waiter:match('^(.-)%z(.-)%z(.*)$') end

-- Notifies up to `count` waiting consumers; first `waiter`, if the caller has removed one from the set already. Consumers
-- whose process does not listen any more do not count.
local function notify(idle, count, waiter)
  while count > 0 do
    waiter = waiter or call('SPOP', idle)
    if not waiter then return end
    local channel, number = split_waiter(waiter)
    if call('PUBLISH', channel, number) > 0 then count = count - 1 end
    waiter = nil
  end
end
