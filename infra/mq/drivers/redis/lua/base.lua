-- In front of every script: time, and waking. Each run of a script makes all of its functions anew, so that the most
-- frequent one does with these.

local call = redis.call

-- Whether a client's copy of the registry is not the present one; before anything was declared there is none.
local function is_outdated(meta, version) return (call('HGET', meta, 'v') or '') ~= version end

local function digits(number) return string.format('%.0f', number) end

local SECOND = 1000000

-- The queue's clock, in microseconds since the epoch: the server's, or what a test says. It never goes back. Where the
-- server's clock was set back, this one goes on from where it was, and runs a tenth slower until both agree again: else
-- everything that waits for a time would wait for as long as the step, and leases would hold for as long.
-- `meta` keeps how far it got, to within a second, and by how much it is ahead.
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

-- A message is a packed array that begins with its serial.
local SERIAL_FROM, SERIAL_TO = 3, 33
local function serial_of(message) return message:sub(SERIAL_FROM, SERIAL_TO) end

local function sleeper_of(bell) return bell:match('^(.-)%z(.-)%z(.*)$') end

-- Wakes up to `count` of those that sleep until something comes, the one with `bell`, if it was taken already, first.
-- Whoever left without a word is passed over.
local function ring(idle, count, bell)
  while count > 0 do
    bell = bell or call('SPOP', idle)
    if not bell then return end
    local channel, number = sleeper_of(bell)
    if call('PUBLISH', channel, number) > 0 then count = count - 1 end
    bell = nil
  end
end
