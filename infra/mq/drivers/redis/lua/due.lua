-- Promotes deliveries and mailboxes that have become due, in bounded steps: a million may become due at once.

local function is_due(key, now) return call('ZCOUNT', key, '-inf', now) > 0 end

-- Promotes scheduled deliveries of an unordered subscription; they keep their due time.
local function promote_unordered(group, due)
  local members, times = {}, {}
  for index = 1, #due, 2 do
    members[#members + 1] = due[index]
    times[#times + 1] = due[index + 1]
    times[#times + 1] = due[index]:sub(PLANNED_FROM)
  end
  many('ZADD', group.later, times)
  many('ZREM', group.plan, members)
  left.items = left.items - #members
end

-- Promotes scheduled deliveries of an ordered subscription into their mailboxes. This copies each message.
local function promote_ordered(group, due)
  local members, serials, places, bodies = {}, {}, {}, {}
  for index = 1, #due, 2 do
    members[#members + 1] = due[index]
    serials[#serials + 1] = due[index]:sub(PLANNED_FROM)
  end
  local set = mailboxes_of(group)
  for index, message in ipairs(values(group.body, serials)) do
    if message then
      local _, _, key = parts_of(message)
      key = key or ''
      places[#places + 1] = place(key, append(set, key, 1))
      places[#places + 1] = message
      bodies[#bodies + 1] = serials[index]
      left.bytes = left.bytes - #message
    end
  end
  many('HSET', group.body, places)
  write_boxes(set)
  many('HDEL', group.body, bodies)
  many('ZREM', group.plan, members)
  left.items = left.items - #members
end

-- Promotes about `limit` scheduled deliveries.
local function promote_plan(group, ordered, now, limit)
  while limit > 0 and left.items > 0 and left.bytes > 0 do
    local wanted = math.min(limit, left.items, ordered and LARGE or 500)
    local due = call('ZRANGEBYSCORE', group.plan, '-inf', now, 'WITHSCORES', 'LIMIT', 0, wanted)
    if #due == 0 then return end
    if ordered then promote_ordered(group, due) else promote_unordered(group, due) end
    limit = limit - #due / 2
  end
end

-- Moves mailboxes whose head has become due into the line, in the order of their due times. If not all fit into this run,
-- mailboxes that become due later wait behind the rest.
local function promote_waiting(group, now, limit)
  while limit > 0 and left.items > 0 do
    local keys = call('ZRANGEBYSCORE', group.later, '-inf', now, 'LIMIT', 0, math.min(limit, left.items, 500))
    if #keys == 0 then return end
    local set = mailboxes_of(group)
    load_boxes(set, keys)
    for _, key in ipairs(keys) do
      local box = get_box(set, key)
      if box and box[STATE] == WAITING then make_ready(set, key, box) end
    end
    write_boxes(set)
    many('ZREM', group.later, keys)
    left.items = left.items - #keys
    limit = limit - #keys
  end
  if is_due(group.later, now) then group.behind = digits(now) end
end

-- A due message cannot be cancelled any more, so its entry in the index of ids is deleted.
local function forget_due_plans(plans, planned, now)
  for _, entry in ipairs(call('ZRANGEBYSCORE', plans, '-inf', now, 'LIMIT', 0, 100)) do
    local member, id = entry:match('^(.-)%z(.*)$')
    local packed = call('HGET', planned, id)
    if packed then
      local rest = {}
      for _, it in ipairs(cmsgpack.unpack(packed)) do
        if it[1] ~= member then rest[#rest + 1] = it end
      end
      if #rest > 0 then call('HSET', planned, id, cmsgpack.pack(rest)) else call('HDEL', planned, id) end
    end
    call('ZREM', plans, entry)
  end
end
