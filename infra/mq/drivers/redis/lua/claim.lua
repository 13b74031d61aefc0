-- Claims due deliveries of the subscriptions that a worker wants; without any, registers the worker as waiting.
-- Returns the next due time ('' for none), the claims of each subscription, and whether the wait before this request has
-- ended without a handed-over delivery; or -1 (outdated registry), -2 (lease lost), -3 (request is void).
-- KEYS: meta, leases, plans, planned, waiting workers, claims, then a group for every subscription.
-- ARGV: registry version, time, worker, waiter id to register ('' for none), waiter id to remove ('' for none), wants,
--       number of the request, number of bytes that the claims after the first may have, takeovers from which on a
--       delivery of a mailbox is claimed alone, largest number of deliveries of one mailbox in a claim.

local meta, leases, plans, planned, waiting, numbers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local KEPT = 6
if is_outdated(meta, ARGV[1]) then return -1 end
local worker, waiter, withdrawn = ARGV[3], ARGV[4], ARGV[5]
local wants = cmsgpack.unpack(ARGV[6])
if (tonumber(call('ZSCORE', leases, worker)) or 0) <= 0 then return -2 end
-- A request that its worker has made void must claim nothing when it arrives late: the worker would not know the claim.
if tonumber(ARGV[7]) <= (tonumber(call('HGET', numbers, worker)) or 0) then return -3 end
local now = clock(ARGV[2], meta)
expect_large(meta)
forget_due_plans(plans, planned, now)

local SUSPECT, BATCH = tonumber(ARGV[9]), tonumber(ARGV[10])
local budget = {claims = 1000, bytes = tonumber(ARGV[8]), first = true, read = 0}

-- Returns how many of these messages fit into the answer; the first message of all always does.
local function fitting(messages, first, last)
  local bytes, count = budget.bytes, 0
  for index = first, last do
    budget.read = budget.read + #messages[index]
    if budget.first then
      budget.first = false
    else
      bytes = bytes - #messages[index]
      if bytes < 0 then
        budget.bytes = 0
        return count
      end
    end
    count = count + 1
  end
  budget.bytes = bytes
  return count
end

-- Returns how many messages to read next: more once the ones before were small.
local function next_page(few, size, count)
  return size < count * 4096 and 100 or few
end

local function counters(past) return past[FAILURES], past[DEFERRALS], past[TAKEOVERS], past[CRASHES] end

-- Returns the next due deliveries, from the line and from the released ones, in the order in which they became due: the
-- messages, and for each its id if it was released before, or false if it is from the line. A serial begins with the time
-- of its publish.
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
  while #messages < limit and budget.bytes > 0 do
    local found, origins, lost = next_due(group, math.min(limit - #messages, page))
    local count = fitting(found, 1, #found)
    local body, own, returned, taken = {}, {}, lost, 0
    for index = 1, count do
      local message = found[index]
      local serial = serial_of(message)
      if origins and origins[index] then
        returned[#returned + 1] = origins[index]
      else
        -- A delivery from the line is stored by its id from now on, as a released one is already.
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
    page = next_page(LARGE, budget.read, #messages)
  end
  return {messages, pasts}
end

-- Returns the first deliveries of a mailbox, up to a suspect; a suspect is claimed alone.
local function first_deliveries(set, key, box, remembers)
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
  -- Where messages are large, their sizes are read first, so that none is read in vain.
  local bytes = budget.bytes
  for index = 2, LARGE > 1 and 0 or #places do
    bytes = bytes - call('HSTRLEN', set.group.body, places[index])
    if bytes < 0 then places[index] = nil end
  end
  while #sequences > #places do sequences[#sequences] = nil end
  while #pasts > 0 and pasts[#pasts][1] > #places do pasts[#pasts] = nil end
  return sequences, places, pasts
end

-- Reduces a claim to its first deliveries.
local function cut(claim, count)
  local sequences, pasts = claim[3], claim[5]
  while #sequences > count do sequences[#sequences] = nil end
  while #pasts > 0 and pasts[#pasts][1] > count do pasts[#pasts] = nil end
end

-- Claims the first mailboxes in line, at most `most`; returns how many leave the line, and the claims.
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
      -- The mailbox was emptied by a retirement. If its key was used again since, it is in line twice.
      left.holes = left.holes - 1
    else
      seen[key] = true
      local sequences, places, pasts = first_deliveries(set, key, box, remembers)
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
      -- The stored head may be at a hole.
      box[STATE], box[HEAD], box[CLAIMED], box[FENCE] = OWNED, claim[3][1], fits, claim[2]
      set.changed[key] = true
      own[#own + 1] = key
      own[#own + 1] = worker
      claims[#claims + 1] = claim
    elseif count == 0 then
      -- Only holes were found: the mailbox continues after them, at the end of the line.
      skip_holes(set, key, box)
      make_ready(set, key, box)
    else
      -- The answer is full: this mailbox and those behind it stay in line.
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
  while #claims < limit and budget.bytes > 0 and left.holes > 0 do
    local used, opened = open_mailboxes(group, math.min(limit - #claims, page), remembers)
    for _, claim in ipairs(opened) do claims[#claims + 1] = claim end
    if used == 0 then break end
    page = next_page(page, budget.read, #claims * BATCH)
  end
  return claims
end

-- 0 if a delivery was handed over, which has ended the wait already.
local ended = withdrawn ~= '' and call('HDEL', waiting, worker) or 0
local answer, total = {}, 0
for number, want in ipairs(wants) do
  local group, ordered, limit = group_at(KEPT + (number - 1) * GROUP), want[1], math.min(want[2], budget.claims)
  if withdrawn ~= '' then call('SREM', group.idle, withdrawn) end
  local claimed = ordered and {} or {{}, {}}
  if limit > 0 then
    promote_plan(group, ordered, now, ordered and 500 or limit)
    if ordered then promote_waiting(group, now, limit) end
    if budget.bytes > 0 and left.holes > 0 then
      claimed = ordered and claim_mailboxes(group, limit) or claim_deliveries(group, limit)
      local count = ordered and #claimed or #claimed[1]
      total = total + count
      budget.claims = budget.claims - count
    end
  end
  answer[number] = claimed
  -- More is due than this worker takes, so the next one is notified.
  if call('LLEN', group.line) > 0 then notify(group.idle, 1) end
end
if total > 0 then call('HSET', numbers, worker, ARGV[7]) end

-- Due times that this run could not check are checked by the next request at once.
local due = (left.items <= 0 or left.bytes <= 0 or left.holes <= 0) and 0
if total == 0 then
  if waiter ~= '' then call('HSET', waiting, worker, ARGV[7]) end
  for number, want in ipairs(wants) do
    local group = group_at(KEPT + (number - 1) * GROUP)
    if want[2] > 0 then
      for _, key in ipairs({group.later, group.plan}) do
        local first = tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
        if first and (not due or first < due) then due = first end
      end
      if waiter ~= '' then call('SADD', group.idle, waiter) end
    end
  end
end
return {due and digits(due) or '', answer, ended}
