-- Hands a single message over to a waiting worker, as a claim.

-- The largest such message, in bytes: the server closes connections that receive large notifications too slowly.
local MAX_HANDED_OVER = 65536

local function is_anything_due(group, now)
  if call('EXISTS', group.line, group.later, group.plan) == 0 then return false end
  return call('LLEN', group.line) > 0 or call('ZCOUNT', group.later, '-inf', now) > 0
    or call('ZCOUNT', group.plan, '-inf', now) > 0
end

-- Claims the message for the worker of `waiter`, or of another waiting consumer, and sends it with the notification, which
-- saves the worker a request. At most once per wait, and only if no other delivery is due.
-- Returns whether it did; if not, also the waiter that is still to be notified, if there is one.
local function hand_over(group, now, waiting, waiter, sid, message)
  if #message > MAX_HANDED_OVER or is_anything_due(group, now) then return false, waiter end
  local serial = serial_of(message)
  while waiter do
    local channel, number, worker = split_waiter(waiter)
    local wait = call('HGET', waiting, worker)
    if wait then
      call('HDEL', waiting, worker)
      call('HSET', group.body, serial, message)
      call('HSET', group.own, serial, worker)
      if call('PUBLISH', channel, table.concat({number, wait, sid, message}, ' ')) > 0 then return true end
      -- No process received it: undo the claim.
      call('HDEL', group.own, serial)
      call('HDEL', group.body, serial)
    end
    waiter = call('SPOP', group.idle)
  end
  return false
end
