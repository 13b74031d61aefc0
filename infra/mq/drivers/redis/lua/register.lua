-- Replaces the registry if it is still the one that the change was made on; 0 otherwise.
-- KEYS: meta. ARGV: version expected ('' for none), version, registry, time, channel that tells everyone.

if (call('HGET', KEYS[1], 'v') or '') ~= ARGV[1] then return 0 end
call('HSET', KEYS[1], 'v', ARGV[2], 'r', ARGV[3], 't', digits(clock(ARGV[4], KEYS[1])))
call('PUBLISH', ARGV[5], '')
return 1
