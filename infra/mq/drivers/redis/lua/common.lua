-- In front of nearly every script: keys, numbers, and commands with any number of arguments.

-- Groups of keys: one for every subscription, always these, in this order.
local GROUP = 9
local function group_at(base)
  return {
    line = KEYS[base + 1],   -- what is due, first come first: LIST of messages, or of the keys of mailboxes
    later = KEYS[base + 2],  -- what was given back and has a time: ZSET of deliveries, or of the keys of mailboxes
    body = KEYS[base + 3],   -- everything unfinished that is not in line itself: HASH of delivery -> message
    plan = KEYS[base + 4],   -- what its publisher delayed: ZSET of a number and the delivery
    idle = KEYS[base + 5],   -- who sleeps until something comes: SET of bells
    own = KEYS[base + 6],    -- what is claimed: HASH of delivery or mailbox -> worker
    past = KEYS[base + 7],   -- what went wrong so far: HASH of delivery -> packed record
    box = KEYS[base + 8],    -- ordered: HASH of key -> packed mailbox
    block = KEYS[base + 9],  -- ordered: HASH of blocked key -> last error
  }
end

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

-- All arguments, or those from `first` to `last`.
local function many(command, key, arguments, first, last)
  local total = 0
  last = last or #arguments
  for at = first or 1, last, CHUNK do
    total = total + call(command, key, unpack(arguments, at, math.min(at + CHUNK - 1, last)))
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

-- What one run of a script works on at most, of all subscriptions together: it is called again for what is left.
local LARGE = 25 -- how many messages, which may be large, are read at a time: one, if a publisher said that some are large
local left = {items = 1000, bytes = 4 * 1024 * 1024, holes = 2000}

-- These are the first elements of a message.
local PLANNED_FROM = 17 -- where the serial begins in a plan
local function parts_of(message)
  local _, serial, id, event, key, published_at = cmsgpack.unpack_limit(message, 5, 1)
  return id, event, key, published_at
end

local function expect_large(meta)
  if call('HEXISTS', meta, 'large') == 1 then LARGE = 1 end
end
