-- Replaces the registry if it is still the one that the change was made on; 0 otherwise, and -2 if it adds an event to a
-- subscription of which a part is still being removed: that would remove messages that come after this.
-- KEYS: meta, retiring. ARGV: version expected ('' for none), version, registry, time, channel that tells everyone, sids of
--       the subscriptions that get more events.

if (call('HGET', KEYS[1], 'v') or '') ~= ARGV[1] then return 0 end
for index = 6, #ARGV do
  if call('HEXISTS', KEYS[2], ARGV[index]) == 1 then return -2 end
end
call('HSET', KEYS[1], 'v', ARGV[2], 'r', ARGV[3], 't', digits(clock(ARGV[4], KEYS[1])))
call('PUBLISH', ARGV[5], '')
return 1
