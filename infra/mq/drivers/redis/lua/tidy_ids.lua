-- Deletes ids older than the dedupe window, more per call than a publish adds, and lets all of them expire `kept_for`
-- milliseconds after the last call. Returns the number of old ids left to delete.
local function tidy_ids(accepted, since, kept_for, added)
  if kept_for == '' then return 0 end
  local old, most = call('ZCOUNT', accepted, '-inf', digits(since)), math.max(1000, 2 * added)
  if old > 0 then call('ZREMRANGEBYRANK', accepted, 0, math.min(old, most) - 1) end
  call('PEXPIRE', accepted, kept_for)
  return math.max(0, old - most)
end
