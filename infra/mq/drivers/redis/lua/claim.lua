-- Claims what is due for all that a worker wants; with nothing to claim, leaves word where to ring.
-- KEYS: meta, leases, plans, planned, sleepers, then a group for every subscription.
-- ARGV: registry version, time, worker, bell to leave ('' for none), bell to take back ('' for none), wants,
--       number of the sleep.

local meta, leases, plans, planned, sleepers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local KEPT = 5
if is_outdated(meta, ARGV[1]) then return -1 end
local now, worker, bell, risen = clock(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local wants = cmsgpack.unpack(ARGV[6])
if (tonumber(call('ZSCORE', leases, worker)) or 0) <= 0 then return -2 end
forget_due_plans(plans, planned, now)

local SUSPECT, BATCH = 2, 10
-- No more for one subscription once the messages are larger than this: an answer is made up in memory.
local BYTES = 16 * 1024 * 1024
local SLICE = 100

local function counters(past) return past[FAILURES], past[DEFERRALS], past[TAKEOVERS], past[CRASHES] end

-- The next in line, and of what was given back and is due, in the order in which they became due: the messages, how many
-- of them are from the line, and which were given back. A serial begins with the time of its publish.
local function next_due(group, limit)
  local back = call('ZRANGEBYSCORE', group.later, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  local line = call('LRANGE', group.line, 0, limit - 1)
  if #back == 0 then return line, #line, {} end
  local found, returned, taken, at = {}, {}, 0, 1
  while #found < limit and (at <= #back or taken < #line) do
    local fresh = line[taken + 1]
    if at > #back or (fresh and tonumber(serial_of(fresh):sub(1, 16)) <= tonumber(back[at + 1])) then
      found[#found + 1] = fresh
      taken = taken + 1
    else
      found[#found + 1] = call('HGET', group.body, back[at]) or nil
      returned[#returned + 1] = back[at]
      at = at + 2
    end
  end
  return found, taken, returned
end

local function claim_deliveries(group, limit)
  local messages, pasts, size = {}, {}, 0
  local remembers = has_past(group)
  while #messages < limit and size < BYTES do
    local found, taken, returned = next_due(group, math.min(limit - #messages, SLICE))
    if taken + #returned == 0 then break end
    local body, own = {}, {}
    for index, message in ipairs(found) do
      local serial = serial_of(message)
      body[2 * index - 1], body[2 * index] = serial, message
      own[2 * index - 1], own[2 * index] = serial, worker
      messages[#messages + 1] = message
      size = size + #message
      local past = remembers and call('HGET', group.past, serial)
      if past then
        local f, d, t, c = counters(cmsgpack.unpack(past))
        pasts[#pasts + 1] = {#messages, f, d, t, c}
      end
    end
    -- Out of the line it is kept by its name; what was given back is already.
    if taken > 0 then
      many('HSET', group.body, body)
      call('LTRIM', group.line, taken, -1)
    end
    many('HSET', group.own, own)
    many('ZREM', group.later, returned)
  end
  return {messages, pasts}
end

-- The first deliveries of a mailbox, up to a suspect; a suspect is alone.
local function letters_of(set, key, box, remembers)
  local sequences = sequences_of(set, key, box, BATCH)
  local places, pasts = {}, {}
  for index, sequence in ipairs(sequences) do
    places[index] = place(key, sequence)
    local packed = remembers and call('HGET', set.group.past, places[index])
    if packed then
      local f, d, t, c = counters(cmsgpack.unpack(packed))
      if t >= SUSPECT and index > 1 then
        places[index], sequences[index] = nil, nil
        break
      end
      pasts[#pasts + 1] = {index, f, d, t, c}
      if t >= SUSPECT then break end
    end
  end
  while #sequences > #places do sequences[#sequences] = nil end
  return sequences, places, pasts
end

local function claim_mailboxes(group, limit)
  local claims, size = {}, 0
  local remembers = has_past(group)
  while #claims < limit and size < BYTES do
    local keys = call('LRANGE', group.line, 0, math.min(limit - #claims, SLICE) - 1)
    if #keys == 0 then break end
    local set, own, wanted = mailboxes_of(group), {}, {}
    local fence = next_numbers(meta, #keys)
    load_boxes(set, keys)
    local first = #claims + 1
    for _, key in ipairs(keys) do
      local box = get_box(set, key)
      if box and box[STATE] == READY then
        local sequences, places, pasts = letters_of(set, key, box, remembers)
        box[STATE], box[CLAIMED], box[FENCE] = OWNED, #sequences, fence
        set.changed[key] = true
        own[#own + 1] = key
        own[#own + 1] = worker
        for _, it in ipairs(places) do wanted[#wanted + 1] = it end
        claims[#claims + 1] = {key, fence, sequences, {}, pasts}
        fence = fence + 1
      end
    end
    local messages, at = values(group.body, wanted), 1
    for index = first, #claims do
      local claim = claims[index]
      for position = 1, #claim[3] do
        claim[4][position] = messages[at]
        size = size + #messages[at]
        at = at + 1
      end
    end
    many('HSET', group.own, own)
    write_boxes(set)
    call('LTRIM', group.line, #keys, -1)
  end
  return claims
end

if risen ~= '' then call('HDEL', sleepers, worker) end
local answer, total = {}, 0
for number, want in ipairs(wants) do
  local group, ordered, limit = group_at(KEPT + (number - 1) * GROUP), want[1], want[2]
  if risen ~= '' then call('SREM', group.idle, risen) end
  local claimed = {}
  if limit > 0 then
    promote(group, ordered, now)
    claimed = ordered and claim_mailboxes(group, limit) or claim_deliveries(group, limit)
    total = total + (ordered and #claimed or #claimed[1])
  end
  answer[number] = claimed
  -- Whoever was woken for more than it takes passes the word on.
  if call('LLEN', group.line) > 0 then ring(group.idle, 1) end
end

local due = false
if total == 0 then
  if bell ~= '' then call('HSET', sleepers, worker, ARGV[7]) end
  for number, want in ipairs(wants) do
    local group = group_at(KEPT + (number - 1) * GROUP)
    if want[2] > 0 then
      for _, key in ipairs({group.later, group.plan}) do
        local first = tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
        if first and (not due or first < due) then due = first end
      end
      if bell ~= '' then call('SADD', group.idle, bell) end
    end
  end
end
return {due and digits(due) or '', answer}
