-- Accepts messages of one event that only unordered subscriptions receive, all due now. It does no work per message, which
-- would take longer than storing the message.
-- KEYS: meta, accepted, dedupe, waiting workers, then line, later, body, plan, idle and own of every subscription.
-- ARGV: registry version, time, dedupe window, milliseconds for which to store ids ('' to delete no old ids in this call),
--       number of messages; for every subscription its sid and whether it is paused ('1'); the messages; marks of events
--       and ids, for all messages or for none.
-- Returns the number of expired ids left to delete, or -1 (outdated registry).

local meta, accepted, older = KEYS[1], KEYS[2], KEYS[3]
local KEPT, EACH = 4, 6
if is_outdated(meta, ARGV[1]) then return -1 end
local now, count = clock(ARGV[2], meta), tonumber(ARGV[5])
local since, targets = now - ARGV[3], (#KEYS - KEPT) / EACH
local first = 6 + 2 * targets
local last = first + count - 1
local messages, first_id, last_id = ARGV, last + 1, #ARGV

local dropped, has_older = mark_ids(accepted, older, first_id, last_id, now, since)
if dropped then
  local kept = {}
  for index = 0, count - 1 do
    if not dropped[first_id + index] then kept[#kept + 1] = ARGV[first + index] end
  end
  messages, first, last = kept, 1, #kept
end

marked(accepted, first_id, last_id, dropped, function()
  for number = 0, targets - 1 do
    local base = KEPT + number * EACH
    many('RPUSH', KEYS[base + 1], messages, first, last)
    notify(KEYS[base + 5], last - first + 1)
  end
end)

if has_older then mark_older(older, first_id, last_id, dropped, now) end
return tidy_ids(accepted, since, ARGV[4], count)
