-- In front of every script: time, numbers, and commands with any number of arguments.

local call = redis.call

-- Groups of keys: one for every subscription, always these, in this order.
local GROUP = 9
local function group_at(base)
  return {
    line = KEYS[base + 1],   -- what is due, first come first: LIST of deliveries, or of the keys of mailboxes
    later = KEYS[base + 2],  -- what was given back and has a time: ZSET of the same
    body = KEYS[base + 3],   -- everything unfinished: HASH of delivery -> message
    plan = KEYS[base + 4],   -- what its publisher delayed: ZSET of a number and the delivery
    idle = KEYS[base + 5],   -- who sleeps until something comes: SET of bells
    own = KEYS[base + 6],    -- what is claimed: HASH of delivery or mailbox -> worker
    past = KEYS[base + 7],   -- what went wrong so far: HASH of delivery -> packed record
    box = KEYS[base + 8],    -- ordered: HASH of key -> packed mailbox
    block = KEYS[base + 9],  -- ordered: HASH of blocked key -> last error
  }
end

-- Whether a client's copy of the registry is not the present one; before anything was declared there is none.
local function is_outdated(meta, version) return (call('HGET', meta, 'v') or '') ~= version end

-- Microseconds since the epoch: the broker's own, unless a test says what time it is.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

local function digits(number) return string.format('%.0f', number) end

-- Reserves numbers that were never given out before: also not by a server that lost its last second, or was flushed,
-- because the numbers never fall behind the time.
local function next_numbers(meta, count)
  local time = call('TIME')
  local first = math.max((tonumber(call('HGET', meta, 'n')) or 0) + 1, time[1] * 1000000 + time[2])
  call('HSET', meta, 'n', digits(first + count - 1))
  return first
end

-- `unpack` has a limit; even, because many of these arguments are pairs.
local CHUNK = 4000

local function many(command, key, arguments)
  local total = 0
  for first = 1, #arguments, CHUNK do
    total = total + call(command, key, unpack(arguments, first, math.min(first + CHUNK - 1, #arguments)))
  end
  return total
end

local function values(key, fields)
  if #fields <= CHUNK then
    if #fields == 0 then return {} end
    return call('HMGET', key, unpack(fields))
  end
  local found = {}
  for first = 1, #fields, CHUNK do
    for _, value in ipairs(call('HMGET', key, unpack(fields, first, math.min(first + CHUNK - 1, #fields)))) do
      found[#found + 1] = value
    end
  end
  return found
end

-- Wakes up to `count` of those that sleep until something comes. Whoever left without a word is passed over.
local function sleeper_of(bell) return bell:match('^(.-)%z(.-)%z(.*)$') end

local function ring(idle, count)
  while count > 0 do
    local bell = call('SPOP', idle)
    if not bell then return end
    local channel, number = sleeper_of(bell)
    if call('PUBLISH', channel, number) > 0 then count = count - 1 end
  end
end

-- A message is a packed array; these are its first elements.
local PLANNED_FROM = 17 -- where the serial begins in a plan
local function parts_of(message)
  local _, serial, id, event, key, published_at = cmsgpack.unpack_limit(message, 5, 1)
  return id, event, key, published_at
end
