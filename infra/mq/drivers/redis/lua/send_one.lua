-- Accepts one message that goes to unordered subscriptions, and at once: the most frequent call of all.
-- KEYS and ARGV: as for send.lua.

local meta, accepted, older, sleepers = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local KEPT, EACH = 4, 6
if is_outdated(meta, ARGV[1]) then return -1 end
local now = clock(ARGV[2], meta)
local since, targets = now - ARGV[3], (#KEYS - KEPT) / EACH
local said = 6 + 2 * targets
local message, mark = ARGV[said], ARGV[said + 1]

-- As for many messages; see ids.lua.
local function is_repeated()
  local at = call('ZSCORE', accepted, mark)
  if not at and call('EXISTS', older) == 1 then at = call('ZSCORE', older, mark:sub((mark:find('\0', 1, true)) + 1)) end
  return at and tonumber(at) > since
end

if not (mark and is_repeated()) then
  for number = 0, targets - 1 do
    local base, sid, paused = KEPT + number * EACH, ARGV[6 + 2 * number], ARGV[7 + 2 * number]
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
  if mark then call('ZADD', accepted, digits(now), mark) end
end

return tidy_ids(accepted, since, ARGV[4], 1)
