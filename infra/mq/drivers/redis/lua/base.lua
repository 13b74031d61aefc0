-- In front of every script: time, and waking. Each run of a script makes all of its functions anew, so that the most
-- frequent one does with these.

local call = redis.call

-- Whether a client's copy of the registry is not the present one; before anything was declared there is none.
local function is_outdated(meta, version) return (call('HGET', meta, 'v') or '') ~= version end

-- Microseconds since the epoch: the broker's own, unless a test says what time it is.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

local function digits(number) return string.format('%.0f', number) end

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
