-- Reads named claims of a worker; returns the number of names that were read, and the claims.
-- KEYS: a group. ARGV: worker, whether the subscription is ordered, names of deliveries or mailboxes.

local group, ordered = group_at(0), ARGV[2] == '1'
local names = cmsgpack.unpack(ARGV[3])
local owners = values(group.own, names)

local function past_entry(id, position)
  local past = past_of(group, id)
  return {position, past[FAILURES], past[DEFERRALS], past[TAKEOVERS], past[CRASHES], fence_of(past)}
end

local function size_of(messages)
  for _, message in ipairs(messages) do left.bytes = left.bytes - #(message or '') end
end

local function read_deliveries()
  local messages, pasts = {}, {}
  for index, id in ipairs(names) do
    if left.bytes <= 0 then return index - 1, {messages, pasts} end
    local message = owners[index] == ARGV[1] and call('HGET', group.body, id)
    if message then
      messages[#messages + 1] = message
      pasts[#pasts + 1] = past_entry(id, #messages)
      size_of({message})
    end
  end
  return #names, {messages, pasts}
end

local function read_mailboxes()
  local set, claims = mailboxes_of(group), {}
  load_boxes(set, names)
  for index, key in ipairs(names) do
    if left.bytes <= 0 then return index - 1, claims end
    local box = owners[index] == ARGV[1] and get_box(set, key)
    if box then
      local sequences, places, pasts = sequences_of(set, key, box, box[CLAIMED]), {}, {}
      for position, sequence in ipairs(sequences) do
        places[position] = place(key, sequence)
        pasts[position] = past_entry(places[position], position)
      end
      local messages = values(group.body, places)
      size_of(messages)
      if #places > 0 then claims[#claims + 1] = {key, box[FENCE], sequences, messages, pasts} end
    end
  end
  return #names, claims
end

local read, claims
if ordered then read, claims = read_mailboxes() else read, claims = read_deliveries() end
return {read, claims}
