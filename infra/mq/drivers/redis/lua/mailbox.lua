-- Mailboxes: the deliveries of one ordering key, in order, with one owner at a time.
-- The id of a delivery in a mailbox is <key> NUL <sequence>. Sequences increase; retired deliveries leave holes.

local STATE, HEAD, TAIL, SIZE, CLAIMED, FENCE, EVENT = 1, 2, 3, 4, 5, 6, 7
local READY, WAITING, OWNED, PARKED, BLOCKED = 'R', 'W', 'O', 'P', 'B'

local function place(key, sequence) return key .. '\0' .. digits(sequence) end

-- The largest number of sequences to check for the next delivery of a mailbox, since there may be many holes.
local WALK = 200

-- A set of mailboxes of one subscription, with their changes, which `write_boxes` writes all at once: first what is needed
-- to find a mailbox again, then deletions.
local function mailboxes_of(group)
  return {group = group, boxes = {}, changed = {}, ready = {}}
end

local function load_boxes(set, keys)
  local missing = {}
  for _, key in ipairs(keys) do
    if set.boxes[key] == nil then
      set.boxes[key] = false
      missing[#missing + 1] = key
    end
  end
  for index, packed in ipairs(values(set.group.box, missing)) do
    if packed then set.boxes[missing[index]] = cmsgpack.unpack(packed) end
  end
end

local function get_box(set, key)
  if set.boxes[key] == nil then load_boxes(set, {key}) end
  return set.boxes[key]
end

local function make_ready(set, key, box)
  box[STATE] = READY
  box[CLAIMED] = 0
  box[EVENT] = false
  set.changed[key] = true
  set.ready[#set.ready + 1] = key
end

-- Reserves `count` sequences at the end of a mailbox; returns the first.
local function append(set, key, count)
  local box = get_box(set, key)
  if not box then
    box = {READY, 0, 0, 0, 0, 0, false}
    set.boxes[key] = box
    set.ready[#set.ready + 1] = key
  end
  local first = box[TAIL]
  box[TAIL] = first + count
  box[SIZE] = box[SIZE] + count
  set.changed[key] = true
  return first
end

-- Releases a mailbox: it is due at once if deliveries are left in it, else deleted.
local function release_mailbox(set, key, box)
  if box[SIZE] > 0 then
    make_ready(set, key, box)
  else
    set.boxes[key] = false
    set.changed[key] = true
  end
end

local function write_boxes(set)
  local kept, gone, later = {}, {}, {}
  -- While earlier due mailboxes wait for their place in line, later ones wait behind them.
  if set.group.behind then
    for _, key in ipairs(set.ready) do
      if set.boxes[key] then
        set.boxes[key][STATE] = WAITING
        later[#later + 1] = set.group.behind
        later[#later + 1] = key
      end
    end
  end
  for key in pairs(set.changed) do
    local box = set.boxes[key]
    if box then
      kept[#kept + 1] = key
      kept[#kept + 1] = cmsgpack.pack(box)
    else
      gone[#gone + 1] = key
    end
  end
  many('HSET', set.group.box, kept)
  if set.group.behind then
    many('ZADD', set.group.later, later)
  else
    many('RPUSH', set.group.line, set.ready)
  end
  many('HDEL', set.group.box, gone)
  set.changed, set.ready = {}, {}
end

-- Moves the head over holes, at most `limit` of them; the next claim continues.
local function skip_holes(set, key, box, limit)
  if box[SIZE] > 0 and box[SIZE] < box[TAIL] - box[HEAD] then
    local stop = box[HEAD] + (limit or WALK)
    while box[HEAD] < stop and call('HEXISTS', set.group.body, place(key, box[HEAD])) == 0 do
      box[HEAD] = box[HEAD] + 1
      left.holes = left.holes - 1
    end
  end
end

-- Returns the first `limit` sequences of a mailbox; fewer if there are very many holes between them.
local function sequences_of(set, key, box, limit)
  local found, sequence = {}, box[HEAD]
  local whole = box[SIZE] == box[TAIL] - box[HEAD]
  local stop = math.min(box[TAIL], sequence + WALK)
  while sequence < stop and #found < limit do
    if whole or call('HEXISTS', set.group.body, place(key, sequence)) == 1 then
      found[#found + 1] = sequence
    else
      left.holes = left.holes - 1
    end
    sequence = sequence + 1
  end
  return found
end
