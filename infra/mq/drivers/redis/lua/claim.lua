-- Claims what is due for all that a worker wants; with nothing to claim, registers it as waiting.
-- KEYS: meta, leases, plans, planned, sleepers, claims, then a group for every subscription.
-- ARGV: registry version, time, worker, bell to leave ('' for none), bell to take back ('' for none), wants,
--       number of the claim, how many bytes the claims after the first may have.

local meta, leases, plans, planned, sleepers, numbers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local KEPT = 6
if is_outdated(meta, ARGV[1]) then return -1 end
local worker, bell, risen = ARGV[3], ARGV[4], ARGV[5]
local wants = cmsgpack.unpack(ARGV[6])
if (tonumber(call('ZSCORE', leases, worker)) or 0) <= 0 then return -2 end
-- A request that its worker gave up for lost, and that comes late, must claim nothing: nobody would know of it.
if tonumber(ARGV[7]) <= (tonumber(call('HGET', numbers, worker)) or 0) then return -3 end
local now = clock(ARGV[2], meta)
expect_large(meta)
forget_due_plans(plans, planned, now)

local SUSPECT, BATCH = 2, 10
local room = {claims = 1000, bytes = tonumber(ARGV[8]), first = true, read = 0}

-- How many of these messages, from one on, may go into the answer; the first of all may always.
local function fitting(messages, first, last)
  local bytes, count = room.bytes, 0
  for index = first, last do
    room.read = room.read + #messages[index]
    if room.first then
      room.first = false
    else
      bytes = bytes - #messages[index]
      if bytes < 0 then
        room.bytes = 0
        return count
      end
    end
    count = count + 1
  end
  room.bytes = bytes
  return count
end

-- How many are read next: more once they were seen to be small.
local function next_page(few, size, count)
  return size < count * 4096 and 100 or few
end

local function counters(past) return past[FAILURES], past[DEFERRALS], past[TAKEOVERS], past[CRASHES] end

-- The next in line, and of what was given back and is due, in the order in which they became due: the messages, and for
-- each the id under which it was given back, or false for one that is from the line. A serial begins with the time of its
-- publish.
local function next_due(group, limit)
  local back = call('ZRANGEBYSCORE', group.later, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
  local line = call('LRANGE', group.line, 0, limit - 1)
  if #back == 0 then return line, false, {} end
  local found, origins, lost, taken, at = {}, {}, {}, 0, 1
  while #found < limit and (at <= #back or taken < #line) do
    local fresh = line[taken + 1]
    if at > #back or (fresh and tonumber(serial_of(fresh):sub(1, 16)) <= tonumber(back[at + 1])) then
      found[#found + 1] = fresh
      origins[#found] = false
      taken = taken + 1
    else
      local message = call('HGET', group.body, back[at])
      if message then
        found[#found + 1] = message
        origins[#found] = back[at]
      else
        lost[#lost + 1] = back[at]
      end
      at = at + 2
    end
  end
  return found, origins, lost
end

local function claim_deliveries(group, limit)
  local messages, pasts, page = {}, {}, LARGE
  local remembers = has_past(group)
  while #messages < limit and room.bytes > 0 do
    local found, origins, lost = next_due(group, math.min(limit - #messages, page))
    local count = fitting(found, 1, #found)
    local body, own, returned, taken = {}, {}, lost, 0
    for index = 1, count do
      local message = found[index]
      local serial = serial_of(message)
      if origins and origins[index] then
        returned[#returned + 1] = origins[index]
      else
        -- Out of the line it is kept by its name; what was given back is already.
        taken = taken + 1
        body[2 * taken - 1], body[2 * taken] = serial, message
      end
      own[2 * index - 1], own[2 * index] = serial, worker
      messages[#messages + 1] = message
      local past = remembers and call('HGET', group.past, serial)
      if past then
        past = cmsgpack.unpack(past)
        local f, d, t, c = counters(past)
        pasts[#pasts + 1] = {#messages, f, d, t, c, (past[RETURNS] or 0) + 1}
      end
    end
    if taken > 0 then
      many('HSET', group.body, body)
      call('LTRIM', group.line, taken, -1)
    end
    many('HSET', group.own, own)
    many('ZREM', group.later, returned)
    if count == 0 and #lost == 0 then break end
    page = next_page(LARGE, room.read, #messages)
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
  -- Large ones are not read only to be left.
  local bytes = room.bytes
  for index = 2, LARGE > 1 and 0 or #places do
    bytes = bytes - call('HSTRLEN', set.group.body, places[index])
    if bytes < 0 then places[index] = nil end
  end
  while #sequences > #places do sequences[#sequences] = nil end
  while #pasts > 0 and pasts[#pasts][1] > #places do pasts[#pasts] = nil end
  return sequences, places, pasts
end

-- Cuts a claim to its first deliveries.
local function cut(claim, count)
  local sequences, pasts = claim[3], claim[5]
  while #sequences > count do sequences[#sequences] = nil end
  while #pasts > 0 and pasts[#pasts][1] > count do pasts[#pasts] = nil end
end

-- Opens the first mailboxes in line, at most `most`; returns how many of the line are done with, and the claims.
local function open_mailboxes(group, most, remembers)
  local keys = call('LRANGE', group.line, 0, most - 1)
  if #keys == 0 then return 0, {} end
  local set, own, wanted, opened, position_of, used, seen = mailboxes_of(group), {}, {}, {}, {}, 0, {}
  local fence = next_numbers(meta, #keys)
  load_boxes(set, keys)
  for _, key in ipairs(keys) do
    if left.holes <= 0 then break end
    local box = get_box(set, key)
    if not box or box[STATE] ~= READY or seen[key] then
      -- All that was in it was retired. If the key has been used again since, it is in line twice.
      left.holes = left.holes - 1
    else
      seen[key] = true
      local sequences, places, pasts = letters_of(set, key, box, remembers)
      for _, it in ipairs(places) do wanted[#wanted + 1] = it end
      opened[#opened + 1] = {key, fence, sequences, {}, pasts}
      position_of[#opened] = used
      fence = fence + 1
    end
    used = used + 1
  end
  local messages, at, claims = values(group.body, wanted), 1, {}
  for index, claim in ipairs(opened) do
    local key, count = claim[1], #claim[3]
    local fits = count > 0 and fitting(messages, at, at + count - 1) or 0
    local box = get_box(set, key)
    if fits > 0 then
      for position = 1, fits do claim[4][position] = messages[at + position - 1] end
      if fits < count then cut(claim, fits) end
      -- The head may have been left at a hole.
      box[STATE], box[HEAD], box[CLAIMED], box[FENCE] = OWNED, claim[3][1], fits, claim[2]
      set.changed[key] = true
      own[#own + 1] = key
      own[#own + 1] = worker
      claims[#claims + 1] = claim
    elseif count == 0 then
      -- Nothing but holes, as far as was looked: it goes on from there, behind the others.
      skip_holes(set, key, box)
      make_ready(set, key, box)
    else
      -- No room: this one and those behind it stay in line.
      used = position_of[index]
      break
    end
    at = at + count
  end
  many('HSET', group.own, own)
  write_boxes(set)
  call('LTRIM', group.line, used, -1)
  return used, claims
end

local function claim_mailboxes(group, limit)
  local claims, page = {}, math.max(1, LARGE / 5 * 2)
  local remembers = has_past(group)
  while #claims < limit and room.bytes > 0 and left.holes > 0 do
    local used, opened = open_mailboxes(group, math.min(limit - #claims, page), remembers)
    for _, claim in ipairs(opened) do claims[#claims + 1] = claim end
    if used == 0 then break end
    page = next_page(page, room.read, #claims * BATCH)
  end
  return claims
end

-- A sleep in which something was handed over has ended already.
local ended = risen ~= '' and call('HDEL', sleepers, worker) or 0
local answer, total = {}, 0
for number, want in ipairs(wants) do
  local group, ordered, limit = group_at(KEPT + (number - 1) * GROUP), want[1], math.min(want[2], room.claims)
  if risen ~= '' then call('SREM', group.idle, risen) end
  local claimed = ordered and {} or {{}, {}}
  if limit > 0 then
    promote_plan(group, ordered, now, ordered and 500 or limit)
    if ordered then promote_waiting(group, now, limit) end
    if room.bytes > 0 and left.holes > 0 then
      claimed = ordered and claim_mailboxes(group, limit) or claim_deliveries(group, limit)
      local count = ordered and #claimed or #claimed[1]
      total = total + count
      room.claims = room.claims - count
    end
  end
  answer[number] = claimed
  -- A worker that was woken for more than it takes wakes the next one.
  if call('LLEN', group.line) > 0 then ring(group.idle, 1) end
end
if total > 0 then call('HSET', numbers, worker, ARGV[7]) end

-- What could not be looked at now is to be looked at next.
local due = (left.items <= 0 or left.bytes <= 0 or left.holes <= 0) and 0
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
return {due and digits(due) or '', answer, ended}
