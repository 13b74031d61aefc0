-- Forgets ids that count no more, in steps that are larger than what each publish adds; all of them, should nobody say it
-- again for `kept_for` milliseconds. Answers how many are still to be forgotten.
local function tidy_ids(accepted, since, kept_for, added)
  if kept_for == '' then return 0 end
  local old, most = call('ZCOUNT', accepted, '-inf', digits(since)), math.max(1000, 2 * added)
  if old > 0 then call('ZREMRANGEBYRANK', accepted, 0, math.min(old, most) - 1) end
  call('PEXPIRE', accepted, kept_for)
  return math.max(0, old - most)
end
