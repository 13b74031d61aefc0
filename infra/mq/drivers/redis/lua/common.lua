-- A part of nearly every script: groups of keys, numbers, and commands with any number of arguments.

-- The keys of one subscription, in the order of `GROUP` in keys.py.
local GROUP = 9
local function group_at(base)
  return {
    line = KEYS[base + 1],   -- due, in order: LIST of messages or, if ordered, of the keys of mailboxes
    later = KEYS[base + 2],  -- released, by due time: ZSET of deliveries, or of the keys of mailboxes
    body = KEYS[base + 3],   -- unfinished and not in line themselves: HASH of delivery -> message
    plan = KEYS[base + 4],   -- scheduled by their publisher: ZSET of a number and the delivery, by due time
    idle = KEYS[base + 5],   -- waiting consumers: SET of waiter ids
    own = KEYS[base + 6],    -- claims: HASH of delivery or mailbox -> worker
    past = KEYS[base + 7],   -- counters and last errors: HASH of delivery -> packed record
    box = KEYS[base + 8],    -- if ordered: HASH of key -> packed mailbox
    block = KEYS[base + 9],  -- if ordered: HASH of blocked key -> last error
  }
end

-- Reserves `count` numbers that were never used before, and returns the first. They are at least the time in
-- microseconds, so that they are also new after the server was flushed, or lost its last second.
local function next_numbers(meta, count)
  local time = call('TIME')
  local first = math.max((tonumber(call('HGET', meta, 'n')) or 0) + 1, time[1] * 1000000 + time[2])
  call('HSET', meta, 'n', digits(first + count - 1))
  return first
end

-- The largest number of arguments for `unpack`; even, because arguments may be pairs.
local CHUNK = 4000

-- Calls a command with all arguments, or those from `first` to `last`; returns the sum of the answers.
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

-- Limits of one run of a script, for all subscriptions together; its caller runs it again for the rest.
local LARGE = 25 -- number of messages to read at a time; 1 once a publisher has marked the queue as having large ones
local left = {items = 1000, bytes = 4 * 1024 * 1024, holes = 2000}

-- The first elements of a stored message.
local PLANNED_FROM = 17 -- where the serial begins in a member of a plan
local function parts_of(message)
  local _, serial, id, event, key, published_at = cmsgpack.unpack_limit(message, 5, 1)
  return id, event, key, published_at
end

local function expect_large(meta)
  if call('HEXISTS', meta, 'large') == 1 then LARGE = 1 end
end
