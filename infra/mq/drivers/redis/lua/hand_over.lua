-- Gives a lone message straight to a worker that sleeps for lack of work.

-- How large such a message may be: the server cuts connections that are slow to take much of what is published.
local HANDED = 65536

local function is_anything_due(group, now)
  if call('EXISTS', group.line, group.later, group.plan) == 0 then return false end
  return call('LLEN', group.line) > 0 or call('ZCOUNT', group.later, '-inf', now) > 0
    or call('ZCOUNT', group.plan, '-inf', now) > 0
end

-- As if the worker with this bell, or else the next one, had claimed it: that spares it the way back here. Only once
-- per sleep, and nothing overtakes what was due before.
-- Returns whether it did; if it did not, also the bell that is still to be rung, if there is one.
local function hand_over(group, now, sleepers, bell, sid, message)
  if #message > HANDED or is_anything_due(group, now) then return false, bell end
  local serial = serial_of(message)
  while bell do
    local channel, number, worker = sleeper_of(bell)
    local sleep = call('HGET', sleepers, worker)
    if sleep then
      call('HDEL', sleepers, worker)
      call('HSET', group.body, serial, message)
      call('HSET', group.own, serial, worker)
      if call('PUBLISH', channel, table.concat({number, sleep, sid, message}, ' ')) > 0 then return true end
      -- Nobody heard it: the message is still to be put in line, and nowhere else.
      call('HDEL', group.own, serial)
      call('HDEL', group.body, serial)
    end
    bell = call('SPOP', group.idle)
  end
  return false
end
