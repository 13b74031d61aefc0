-- Deletes workers whose claims were released or taken over; a worker with a kept claim keeps its lease.
-- KEYS: leases, workers, waiting workers, claims, since, then the waiting consumers of every subscription.
-- ARGV: whether to delete the lease, too ('1'), then workers.

local leases, workers, waiting, numbers, since = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
for index = 2, #ARGV do
  local worker = ARGV[index]
  local who = call('HGET', workers, worker)
  local waiter = who and cmsgpack.unpack(who)[5]
  -- A notification to a deleted worker would be lost.
  if waiter then
    for number = 6, #KEYS do call('SREM', KEYS[number], waiter) end
  end
  call('HDEL', workers, worker)
  call('HDEL', waiting, worker)
  if ARGV[1] == '1' then
    call('HDEL', numbers, worker)
    call('HDEL', since, worker)
    call('ZREM', leases, worker)
  end
end
return #ARGV - 1
