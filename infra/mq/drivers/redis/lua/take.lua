-- Releases claims of workers on one subscription, a bounded number: unchanged for workers that close, and with the death
-- counted for dead workers. Returns the next cursor ('0' at the end), and the number of deliveries.
-- KEYS: meta, a group.
-- ARGV: time, whether the subscription is ordered, 'dead' or 'leaving', workers, names of the claims ('' for all claims of
--       the workers), cursor, names of claims to keep.

local group, now, ordered, dies = group_at(1), clock(ARGV[1], KEYS[1]), ARGV[2] == '1', ARGV[3] == 'dead'
local PAGE = 200
local function set_of(list)
  local set = {}
  for _, it in ipairs(list) do set[it] = true end
  return set
end
local workers, kept = set_of(cmsgpack.unpack(ARGV[4])), set_of(cmsgpack.unpack(ARGV[7]))

-- Updates the record of a delivery whose claim ends: no longer alone, and with the death of its worker, if it died.
local function update_past(id)
  local past = past_of(group, id)
  local alone = past[ALONE]
  past[ALONE] = false
  if not ordered then past[RETURNS] = past[RETURNS] + 1 end
  if dies then
    local count = alone and CRASHES or TAKEOVERS
    past[count] = past[count] + 1
  end
  if dies or alone or not ordered then keep_past(group, id, past) end
end

local owned, cursor = {}, '0'
local function consider(id, owner)
  if owner and workers[owner] and not kept[id] then owned[#owned + 1] = id end
end
if ARGV[5] ~= '' then
  local ids = cmsgpack.unpack(ARGV[5])
  for index, owner in ipairs(values(group.own, ids)) do consider(ids[index], owner) end
else
  local page = call('HSCAN', group.own, ARGV[6], 'COUNT', PAGE)
  cursor = page[1]
  for index = 1, #page[2], 2 do consider(page[2][index], page[2][index + 1]) end
end
if #owned == 0 then return {cursor, 0} end
table.sort(owned)

local count = 0
if ordered then
  promote_waiting(group, now, 500)
  local set = mailboxes_of(group)
  load_boxes(set, owned)
  for _, key in ipairs(owned) do
    local box = get_box(set, key)
    if box then
      local claimed = sequences_of(set, key, box, box[CLAIMED])
      for _, sequence in ipairs(claimed) do update_past(place(key, sequence)) end
      count = count + #claimed
      release_mailbox(set, key, box)
    end
  end
  write_boxes(set)
else
  local later = {}
  for _, id in ipairs(owned) do
    update_past(id)
    later[#later + 1] = digits(now)
    later[#later + 1] = id
  end
  count = #owned
  many('ZADD', group.later, later)
end
many('HDEL', group.own, owned)
notify(group.idle, #owned)
return {cursor, count}
