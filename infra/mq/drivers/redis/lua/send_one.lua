-- Accepts one message that only unordered subscriptions receive, due now: the most frequent call.
-- KEYS and ARGV: as for send.lua.

local meta, accepted, older, waiting = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local KEPT, EACH = 4, 6
if is_outdated(meta, ARGV[1]) then return -1 end
local now = clock(ARGV[2], meta)
local since, targets = now - ARGV[3], (#KEYS - KEPT) / EACH
local first = 6 + 2 * targets
local message, mark = ARGV[first], ARGV[first + 1]

local older_id = false

-- Returns whether the message is a duplicate, like `mark_ids` of ids.lua for one id.
local function is_repeated()
  local at = call('ZSCORE', accepted, mark)
  if not at and call('EXISTS', older) == 1 then
    older_id = mark:sub((mark:find('\0', 1, true)) + 1)
    at = call('ZSCORE', older, older_id)
  end
  return at and tonumber(at) > since
end

if not (mark and is_repeated()) then
  for number = 0, targets - 1 do
    local base, sid, paused = KEPT + number * EACH, ARGV[6 + 2 * number], ARGV[7 + 2 * number]
    local line, idle, given = KEYS[base + 1], KEYS[base + 5], false
    -- Checked first: mostly no consumer waits, and the other checks are not needed.
    local waiter = call('SPOP', idle)
    if waiter and paused == '' then
      local group = {
        line = line, later = KEYS[base + 2], body = KEYS[base + 3], plan = KEYS[base + 4], idle = idle,
        own = KEYS[base + 6],
      }
      given, waiter = hand_over(group, now, waiting, waiter, sid, message)
    end
    if not given then
      call('RPUSH', line, message)
      if waiter then notify(idle, 1, waiter) end
    end
  end
  -- Marked last, so that a repeated call does not count as a duplicate after an error above.
  if mark then call('ZADD', accepted, digits(now), mark) end
  if older_id and call('PTTL', older) > 0 then call('ZADD', older, digits(now), older_id) end
end

return tidy_ids(accepted, since, ARGV[4], 1)
