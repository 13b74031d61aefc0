-- The record of a delivery: its counters, whether it runs alone, and its last error. RETURNS counts how often an unordered
-- delivery was released after a claim: the fence of its next claim is one more. Records of earlier releases lack it.
local FAILURES, DEFERRALS, TAKEOVERS, CRASHES, ALONE, ERROR, TRACEBACK, RETURNS = 1, 2, 3, 4, 5, 6, 7, 8

local function past_of(group, id)
  local packed = call('HGET', group.past, id)
  if not packed then return {0, 0, 0, 0, false, false, false, 0} end
  local past = cmsgpack.unpack(packed)
  past[RETURNS] = past[RETURNS] or 0
  return past
end

local function keep_past(group, id, past)
  call('HSET', group.past, id, cmsgpack.pack(past))
end

local function has_past(group) return call('EXISTS', group.past) == 1 end

-- Returns the fence of an unordered delivery's current claim, or of its next one.
local function fence_of(past) return past[RETURNS] + 1 end
