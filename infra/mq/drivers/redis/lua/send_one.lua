-- Accepts one message that goes to unordered subscriptions, and at once: the most frequent call of all.
-- KEYS and ARGV: as for send.lua.

local meta, dedupe, sleepers = KEYS[1], KEYS[2], KEYS[3]
local KEPT, EACH = 3, 6
if is_outdated(meta, ARGV[1]) then return -1 end
local now = clock(ARGV[2])
local since, targets = now - ARGV[3], (#KEYS - KEPT) / EACH
local said = 7 + 2 * targets
local message, id = ARGV[said], ARGV[said + 1]
local accepted_at = ARGV[5] == '1' and call('ZSCORE', dedupe, id)

-- An id counts only for the window, however long it is kept.
if not accepted_at or tonumber(accepted_at) <= since then
  for number = 0, targets - 1 do
    local base, sid, paused = KEPT + number * EACH, ARGV[7 + 2 * number], ARGV[8 + 2 * number]
    local line, idle, given = KEYS[base + 1], KEYS[base + 5], false
    -- Who sleeps is asked first: mostly nobody does, and then there is nothing else to find out.
    local bell = call('SPOP', idle)
    if bell and paused == '' then
      local group = {
        line = line, later = KEYS[base + 2], body = KEYS[base + 3], plan = KEYS[base + 4], idle = idle,
        own = KEYS[base + 6],
      }
      given, bell = hand_over(group, now, sleepers, bell, sid, message)
    end
    if not given then
      call('RPUSH', line, message)
      if bell then ring(idle, 1, bell) end
    end
  end
  -- Last of all: an error before this must not make the next try look like a duplicate.
  if id then call('ZADD', dedupe, digits(now), id) end
end

tidy_ids(dedupe, since, ARGV[4])
return 0
