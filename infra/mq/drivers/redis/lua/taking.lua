-- Takes from workers what they own: unchanged when they leave, charged with their death otherwise.

local function charge_death(group, id)
  local past = past_of(group, id)
  local count = past[ALONE] and CRASHES or TAKEOVERS
  past[count] = past[count] + 1
  past[ALONE] = false
  keep_past(group, id, past)
end

local function end_isolation(group, id)
  local packed = call('HGET', group.past, id)
  local past = packed and cmsgpack.unpack(packed)
  if past and past[ALONE] then
    past[ALONE] = false
    keep_past(group, id, past)
  end
end

-- Nobody will answer the bells of workers that are gone.
local function forget_bells(group, workers)
  for _, bell in ipairs(call('SMEMBERS', group.idle)) do
    local _, _, worker = sleeper_of(bell)
    if workers[worker] then call('SREM', group.idle, bell) end
  end
end

-- Returns how many deliveries that were. `workers` and `kept` are sets.
local function take_from(group, ordered, workers, kept, now, treat)
  local owned, taken, count = call('HGETALL', group.own), {}, 0
  for index = 1, #owned, 2 do
    if workers[owned[index + 1]] and not kept[owned[index]] then taken[#taken + 1] = owned[index] end
  end
  if #taken == 0 then return 0 end
  table.sort(taken)
  if ordered then
    promote_waiting(group, now)
    local set = mailboxes_of(group)
    load_boxes(set, taken)
    for _, key in ipairs(taken) do
      local box = get_box(set, key)
      if box then
        local claimed = sequences_of(set, key, box, box[CLAIMED])
        for _, sequence in ipairs(claimed) do treat(group, place(key, sequence)) end
        count = count + #claimed
        give_back(set, key, box)
      end
    end
    write_boxes(set)
  else
    local later = {}
    for _, id in ipairs(taken) do
      treat(group, id)
      later[#later + 1] = digits(now)
      later[#later + 1] = id
    end
    count = #taken
    many('ZADD', group.later, later)
  end
  many('HDEL', group.own, taken)
  ring(group.idle, #taken)
  return count
end
