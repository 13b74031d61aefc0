-- Forgets workers from which everything was taken; one that keeps something keeps its lease.
-- KEYS: leases, workers, sleepers, claims, since, then who waits of every subscription.
-- ARGV: whether the lease goes, too, then workers.

local leases, workers, sleepers, numbers, since = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
for index = 2, #ARGV do
  local worker = ARGV[index]
  local who = call('HGET', workers, worker)
  local bell = who and cmsgpack.unpack(who)[5]
  -- Nobody will answer the bell of a worker that is gone.
  if bell then
    for number = 6, #KEYS do call('SREM', KEYS[number], bell) end
  end
  call('HDEL', workers, worker)
  call('HDEL', sleepers, worker)
  if ARGV[1] == '1' then
    call('HDEL', numbers, worker)
    call('HDEL', since, worker)
    call('ZREM', leases, worker)
  end
end
return #ARGV - 1
