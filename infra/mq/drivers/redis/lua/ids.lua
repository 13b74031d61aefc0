-- Deduplication: a ZSET of marks ("event NUL id") by the time of acceptance. A mark counts for the dedupe window only,
-- however long it is stored. Every id is checked, also a newly generated one: a publish may arrive late, after its sender
-- has published the id again.
-- The previous release stores ids alone, in `older`, a key that expires some time after that release's last publish. Until
-- then this release stores its ids there, too: relays of both releases may send the same outbox row.

local function id_of(mark) return mark:sub((mark:find('\0', 1, true)) + 1) end

-- Finds duplicates among the marks ARGV[first] to ARGV[last] after not all of them were new: accepted before, or twice in
-- this call. New marks have the score `at`. Returns the set of their places in ARGV; expired marks are renewed.
local function find_repeated(accepted, older, first, last, at, since)
  local found, seen, anew, foreign = nil, {}, {}, {}
  local function repeats(place)
    found = found or {}
    found[place] = true
  end
  local was_updated = call('EXISTS', older) == 1
  for from = first, last, CHUNK do
    local to = math.min(from + CHUNK - 1, last)
    local scores, before = call('ZMSCORE', accepted, unpack(ARGV, from, to)), {}
    if was_updated then
      local ids = {}
      for place = from, to do ids[#ids + 1] = id_of(ARGV[place]) end
      before = call('ZMSCORE', older, unpack(ids))
    end
    for offset, score in ipairs(scores) do
      local place = from + offset - 1
      local mark, earlier = ARGV[place], before[offset] and tonumber(before[offset]) > since
      score = tonumber(score)
      if seen[mark] or (score ~= at and score > since) then
        repeats(place)
      elseif earlier then
        repeats(place)
        foreign[#foreign + 1] = mark
      elseif score ~= at then
        anew[#anew + 1] = mark
      end
      seen[mark] = true
    end
  end
  for _, mark in ipairs(anew) do call('ZADD', accepted, string.format('%.2f', at), mark) end
  many('ZREM', accepted, foreign)
  return found
end

-- Marks the ids ARGV[first] to ARGV[last] as accepted; returns the set of the places of duplicates, accepted after `since`
-- or twice in this call, or nil without any; and whether the previous release has published within its dedupe window.
-- The marks get a time that no other mark has, so that the number of added marks shows whether all were new.
local function mark_ids(accepted, older, first, last, now, since)
  if first > last then return nil, false end
  local newest = tonumber(call('ZRANGE', accepted, -1, -1, 'WITHSCORES')[2])
  local at = newest and newest >= now and newest + 0.25 or now
  local score, scored, size, added = string.format('%.2f', at), {}, 0, 0
  for place = first, last do
    scored[size + 1], scored[size + 2] = score, ARGV[place]
    size = size + 2
  end
  for from = 1, size, CHUNK do
    added = added + call('ZADD', accepted, 'NX', unpack(scored, from, math.min(from + CHUNK - 1, size)))
  end
  if added == last - first + 1 and call('EXISTS', older) == 0 then return nil, false end
  return find_repeated(accepted, older, first, last, at, since), call('PTTL', older) > 0
end

-- Stores the ids of accepted messages for the previous release. Called last: a failed call must leave none of them.
local function mark_older(older, first, last, dropped, now)
  local scored = {}
  for place = first, last do
    if not (dropped and dropped[place]) then
      scored[#scored + 1] = digits(now)
      scored[#scored + 1] = id_of(ARGV[place])
    end
  end
  many('ZADD', older, scored)
end

-- Messages that may be sent again after the window, because a process died or lost an answer: the latest of their ids are
-- also stored in a ZSET of their own. Such a message is a duplicate if its id was accepted since the message exists.
-- `carried` has the number of ids to store, the seconds to store them, and pairs of an id's number, counted from
-- ARGV[last], and the time since which its message exists.
local function find_resent(resent, last, carried, repetitions)
  if call('EXISTS', resent) == 0 then return end
  for _, pair in ipairs(carried[3]) do
    local at = call('ZSCORE', resent, ARGV[last + pair[1]])
    if at and tonumber(at) >= pair[2] then repetitions[last + pair[1]] = true end
  end
end

local function mark_resent(resent, last, carried, repetitions, now)
  local scored = {}
  for _, pair in ipairs(carried[3]) do
    local place = last + pair[1]
    if not repetitions[place] then
      scored[#scored + 1] = digits(now)
      scored[#scored + 1] = ARGV[place]
    end
  end
  many('ZADD', resent, scored)
  call('ZREMRANGEBYRANK', resent, 0, -carried[1] - 1)
  call('EXPIRE', resent, digits(carried[2]))
end

-- Runs `work`; if that fails, removes the marks of this call, so that a repeated call does not count as a duplicate.
local function marked(accepted, first, last, dropped, work)
  local done, failure = pcall(work)
  if done then return end
  for place = first, last do
    if not (dropped and dropped[place]) then call('ZREM', accepted, ARGV[place]) end
  end
  error(failure)
end
