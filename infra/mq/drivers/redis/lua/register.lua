-- Replaces the registry. Returns 1; 0 if the version is not the expected one; -2 if a subscription that gets further events
-- has a retirement in progress, which would remove messages published after this change.
-- KEYS: meta, retiring. ARGV: expected version ('' for none), new version, new registry, time, channel for the notification
--       of all processes, sids of the subscriptions that get further events.

if (call('HGET', KEYS[1], 'v') or '') ~= ARGV[1] then return 0 end
for index = 6, #ARGV do
  if call('HEXISTS', KEYS[2], ARGV[index]) == 1 then return -2 end
end
call('HSET', KEYS[1], 'v', ARGV[2], 'r', ARGV[3], 't', digits(clock(ARGV[4], KEYS[1])))
call('PUBLISH', ARGV[5], '')
return 1
