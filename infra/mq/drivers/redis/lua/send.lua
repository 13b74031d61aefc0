-- Accepts messages that all go to the same unordered subscriptions, and at once: most are such. They are passed on as
-- they came: what is done here for each of them would take longer than storing it.
-- KEYS: meta, accepted, dedupe, sleepers, then line, later, body, plan, idle and own of every subscription.
-- ARGV: registry version, time, dedupe window, for how many milliseconds ids are kept ('' to leave that to a later
--       publish, which will come in time), whether ids may be repeated ('1'), how many messages; for every subscription
--       its sid and whether it is paused ('1'); the messages; events with ids, of all of them or of none.
-- Answers how many ids are still to be forgotten, or -1.

local meta, accepted, older = KEYS[1], KEYS[2], KEYS[3]
local KEPT, EACH = 4, 6
if is_outdated(meta, ARGV[1]) then return -1 end
local now, count = clock(ARGV[2], meta), tonumber(ARGV[6])
local since, targets = now - ARGV[3], (#KEYS - KEPT) / EACH
local first = 7 + 2 * targets
local last = first + count - 1
local messages, ids, first_id, last_id = ARGV, ARGV, last + 1, #ARGV

local function drop(dropped)
  local kept, left = {}, {}
  for index = 0, count - 1 do
    if not dropped[first_id + index] then
      left[#left + 1] = ARGV[first_id + index]
      kept[#kept + 1] = ARGV[first + index]
    end
  end
  messages, first, last = kept, 1, #kept
  ids, first_id, last_id = left, 1, #left
end

local dropped = repeated(accepted, older, first_id, last_id, since, ARGV[5] == '1')
if dropped then drop(dropped) end

for number = 0, targets - 1 do
  local base = KEPT + number * EACH
  many('RPUSH', KEYS[base + 1], messages, first, last)
  ring(KEYS[base + 5], last - first + 1)
end

remember_ids(accepted, now, ids, first_id, last_id)
return tidy_ids(accepted, since, ARGV[4], count)
