-- Settles claims, all in one step; returns the numbers of the settlements that were fenced.
-- KEYS: meta, dead, deads, then a group for every subscription, then for each the index of its parking places and the
--       places that the settlements name.
-- ARGV: time, worker, settlements by subscription.

local keys = {meta = KEYS[1], dead = KEYS[2], deads = KEYS[3]}
local now, worker = clock(ARGV[1], KEYS[1]), ARGV[2]
local fenced = {}

local RETRY, DEFER, RELEASE, PARK, BLOCK, DEAD = 1, 2, 3, 4, 5, 6

-- The elements of a settlement; the fence only if it is unordered.
local INDEX, ID, OUTCOME, CLOSE, DELAY, CHARGE, WHY, WHERE, PLACE, ITS_FENCE = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10

local function keep_end(group, id, it, past)
  local outcome = it[OUTCOME]
  if outcome == RETRY or outcome == BLOCK then past[FAILURES] = past[FAILURES] + 1 end
  if outcome == DEFER then past[DEFERRALS] = past[DEFERRALS] + 1 end
  if it[WHY] then past[ERROR], past[TRACEBACK] = it[WHY], it[WHERE] end
  past[ALONE] = false
  keep_past(group, id, past)
end

local function update_past(group, id, it, remembers)
  local outcome = it[OUTCOME]
  if not (remembers or outcome == RETRY or outcome == DEFER or outcome == BLOCK or it[WHY]) then return end
  keep_end(group, id, it, past_of(group, id))
end

local function add_dead(group, sid, id, it)
  add_dead_letter(keys, group, sid, id, now, {error = it[WHY], traceback = it[WHERE], charge = it[CHARGE]})
end

-- DONE is not fenced: the handler has succeeded, whichever worker owns the deliveries now.
local function delete(group, parks, ids)
  local owned = many('HDEL', group.own, ids)
  many('HDEL', group.body, ids)
  if has_past(group) then many('HDEL', group.past, ids) end
  if owned < #ids then
    many('ZREM', group.later, ids)
    for _, place in ipairs(parking_places(parks)) do
      if many('SREM', place, ids) > 0 then close_place(parks, place) end
    end
  end
end

local function settle_deliveries(group, sid, parks, done, others)
  if #done > 0 then delete(group, parks, done) end
  for _, it in ipairs(others) do
    local id, outcome = it[ID], it[OUTCOME]
    local past = call('HGET', group.own, id) == worker and past_of(group, id)
    if not past or fence_of(past) ~= it[ITS_FENCE] then
      fenced[#fenced + 1] = it[INDEX]
    elseif outcome == DEAD then
      add_dead(group, sid, id, it)
      delete(group, parks, {id})
    else
      past[RETURNS] = past[RETURNS] + 1
      keep_end(group, id, it, past)
      if outcome == PARK then
        park(parks, it[PLACE], id)
      else
        call('ZADD', group.later, digits(now + it[DELAY]), id)
      end
      call('HDEL', group.own, id)
    end
  end
  if #others > 0 then notify(group.idle, #others) end
end

-- Removes the head of an owned mailbox.
local function finish(change, set, sid, key, box, it)
  local group, id = set.group, place(key, box[HEAD])
  if it[OUTCOME] == DEAD then add_dead(group, sid, id, it) end
  change.gone[#change.gone + 1] = id
  box[HEAD], box[SIZE], box[CLAIMED] = box[HEAD] + 1, box[SIZE] - 1, box[CLAIMED] - 1
  set.changed[key] = true
end

-- Keeps the head of an owned mailbox, and releases the mailbox.
local function leave(set, parks, key, box, it, remembers)
  local group, outcome = set.group, it[OUTCOME]
  update_past(group, place(key, box[HEAD]), it, remembers)
  box[CLAIMED] = 0
  set.changed[key] = true
  if outcome == PARK then
    box[STATE], box[EVENT] = PARKED, park(parks, it[PLACE], key)
  elseif outcome == BLOCK then
    box[STATE] = BLOCKED
    call('HSET', group.block, key, past_of(group, place(key, box[HEAD]))[ERROR] or '')
  elseif it[DELAY] > 0 then
    box[STATE] = WAITING
    call('ZADD', group.later, digits(now + it[DELAY]), key)
  else
    release_mailbox(set, key, box)
  end
end

-- A closing settlement releases the mailbox also if its delivery was retired meanwhile.
local function settle_mailbox(change, set, sid, parks, claim, remembers)
  local key, fence, ends = claim[1], claim[2], claim[3]
  local box = get_box(set, key)
  local owned = box and box[STATE] == OWNED and box[FENCE] == fence and call('HGET', set.group.own, key) == worker
  for _, it in ipairs(ends) do
    local is_head = owned and box[CLAIMED] > 0 and box[HEAD] == it[ID]
    local stays = is_head and it[OUTCOME] >= RETRY and it[OUTCOME] <= BLOCK
    if not is_head then fenced[#fenced + 1] = it[INDEX] end
    if stays then
      leave(set, parks, key, box, it, remembers)
    elseif is_head then
      finish(change, set, sid, key, box, it)
      skip_holes(set, key, box)
    end
    if owned and (stays or it[CLOSE]) then
      if not stays then release_mailbox(set, key, box) end
      change.free[#change.free + 1] = key
      owned = false
    end
  end
end

local function settle_mailboxes(group, sid, parks, claims)
  promote_waiting(group, now, 500)
  local set, change, wanted = mailboxes_of(group), {gone = {}, free = {}}, {}
  local remembers = has_past(group)
  for index, claim in ipairs(claims) do wanted[index] = claim[1] end
  load_boxes(set, wanted)
  for _, claim in ipairs(claims) do settle_mailbox(change, set, sid, parks, claim, remembers) end
  local woken = #set.ready
  write_boxes(set)
  many('HDEL', group.body, change.gone)
  if has_past(group) then many('HDEL', group.past, change.gone) end
  many('HDEL', group.own, change.free)
  notify(group.idle, woken)
end

local settled = cmsgpack.unpack(ARGV[3])
local parking = 3 + #settled * GROUP
for number, it in ipairs(settled) do
  local group, parks = group_at(3 + (number - 1) * GROUP), {index = KEYS[parking + 1]}
  for place = 1, it[3] do parks[place] = KEYS[parking + 1 + place] end
  parking = parking + 1 + it[3]
  if it[2] then
    settle_mailboxes(group, it[1], parks, it[4])
  else
    settle_deliveries(group, it[1], parks, it[4], it[5])
  end
end
return fenced
