-- Returns what a worker owns but does not know of, for the answer to its claim was lost.
-- KEYS: sleepers, then a group for every subscription.
-- ARGV: worker, per subscription whether it is ordered, and what it knows: deliveries, or keys with their fences.

local worker = ARGV[1]

local function past_entry(group, id, position)
  local past = past_of(group, id)
  return {position, past[FAILURES], past[DEFERRALS], past[TAKEOVERS], past[CRASHES]}
end

local function deliveries(group, owned, known)
  local ids, messages, pasts = {}, {}, {}
  for _, id in ipairs(owned) do
    if not known[id] then ids[#ids + 1] = id end
  end
  for index, message in ipairs(values(group.body, ids)) do
    if message then
      messages[#messages + 1] = message
      pasts[#pasts + 1] = past_entry(group, ids[index], #messages)
    end
  end
  return {messages, pasts}
end

local function mailboxes(group, owned, known)
  local set, claims = mailboxes_of(group), {}
  load_boxes(set, owned)
  for _, key in ipairs(owned) do
    local box = get_box(set, key)
    if box and known[key] ~= box[FENCE] then
      local sequences, places, pasts = sequences_of(set, key, box, box[CLAIMED]), {}, {}
      for index, sequence in ipairs(sequences) do
        places[index] = place(key, sequence)
        pasts[index] = past_entry(group, places[index], index)
      end
      if #places > 0 then claims[#claims + 1] = {key, box[FENCE], sequences, values(group.body, places), pasts} end
    end
  end
  return claims
end

-- Nothing more is handed over to a sleep that ended: what was, is found below.
call('HDEL', KEYS[1], worker)
local answer = {}
for number, it in ipairs(cmsgpack.unpack(ARGV[2])) do
  local group, known, owned = group_at(1 + (number - 1) * GROUP), {}, {}
  for _, entry in ipairs(it[2]) do
    if it[1] then known[entry[1]] = entry[2] else known[entry] = true end
  end
  local all = call('HGETALL', group.own)
  for index = 1, #all, 2 do
    if all[index + 1] == worker then owned[#owned + 1] = all[index] end
  end
  answer[number] = it[1] and mailboxes(group, owned, known) or deliveries(group, owned, known)
end
return answer
