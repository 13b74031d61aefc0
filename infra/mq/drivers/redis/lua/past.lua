-- The record of a delivery's past.
local FAILURES, DEFERRALS, TAKEOVERS, CRASHES, ALONE, ERROR, TRACEBACK = 1, 2, 3, 4, 5, 6, 7

local function past_of(group, id)
  local packed = call('HGET', group.past, id)
  if packed then return cmsgpack.unpack(packed) end
  return {0, 0, 0, 0, false, false, false}
end

local function keep_past(group, id, past)
  call('HSET', group.past, id, cmsgpack.pack(past))
end

local function has_past(group) return call('EXISTS', group.past) == 1 end
