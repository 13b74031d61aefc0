-- What has become due takes its place.

-- What was delayed by its publisher: an unordered delivery keeps its time, an ordered one joins its mailbox.
local function promote_plan(group, ordered, now)
  while true do
    local due = call('ZRANGEBYSCORE', group.plan, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 500)
    if #due == 0 then return end
    local members, serials, times, bodies, places = {}, {}, {}, {}, {}
    for index = 1, #due, 2 do
      members[#members + 1] = due[index]
      serials[#serials + 1] = due[index]:sub(PLANNED_FROM)
      times[#times + 1] = due[index + 1]
      times[#times + 1] = serials[#serials]
    end
    if ordered then
      local set = mailboxes_of(group)
      for index, message in ipairs(values(group.body, serials)) do
        if message then
          local _, _, key = parts_of(message)
          key = key or ''
          places[#places + 1] = place(key, append(set, key, 1))
          places[#places + 1] = message
          bodies[#bodies + 1] = serials[index]
        end
      end
      many('HSET', group.body, places)
      write_boxes(set)
      many('HDEL', group.body, bodies)
    else
      many('ZADD', group.later, times)
    end
    many('ZREM', group.plan, members)
  end
end

-- Mailboxes whose head waited for its time join the line, in the order of their times.
local function promote_waiting(group, now)
  while true do
    local keys = call('ZRANGEBYSCORE', group.later, '-inf', now, 'LIMIT', 0, 500)
    if #keys == 0 then return end
    local set = mailboxes_of(group)
    load_boxes(set, keys)
    for _, key in ipairs(keys) do
      local box = get_box(set, key)
      if box and box[STATE] == WAITING then make_ready(set, key, box) end
    end
    write_boxes(set)
    many('ZREM', group.later, keys)
  end
end

local function promote(group, ordered, now)
  promote_plan(group, ordered, now)
  if ordered then promote_waiting(group, now) end
end

-- A message that is due can be cancelled no more: its entry in the index of ids goes.
local function forget_due_plans(plans, planned, now)
  for _, entry in ipairs(call('ZRANGEBYSCORE', plans, '-inf', now, 'LIMIT', 0, 100)) do
    local member, id = entry:match('^(.-)%z(.*)$')
    local packed = call('HGET', planned, id)
    if packed then
      local left = {}
      for _, it in ipairs(cmsgpack.unpack(packed)) do
        if it[1] ~= member then left[#left + 1] = it end
      end
      if #left > 0 then call('HSET', planned, id, cmsgpack.pack(left)) else call('HDEL', planned, id) end
    end
    call('ZREM', plans, entry)
  end
end
