-- Forgets ids that count no more; all of them, should nobody say it again for `kept_for` milliseconds.
local function tidy_ids(dedupe, since, kept_for)
  if kept_for == '' then return end
  call('ZREMRANGEBYSCORE', dedupe, '-inf', digits(since))
  call('PEXPIRE', dedupe, kept_for)
end
