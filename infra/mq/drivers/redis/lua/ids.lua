-- Ids of messages that are accepted once: a ZSET of id and time. An id counts only for the window, however long it is
-- kept.

-- Which of ARGV[first] to ARGV[last] were accepted since then, or come twice among themselves: a set of their places,
-- or nil if none is.
local function repeated(dedupe, first, last, since)
  local found, seen = nil, {}
  for at = first, last, CHUNK do
    local scores = call('ZMSCORE', dedupe, unpack(ARGV, at, math.min(at + CHUNK - 1, last)))
    for offset, score in ipairs(scores) do
      local place = at + offset - 1
      local id = ARGV[place]
      if seen[id] or (score and tonumber(score) > since) then
        found = found or {}
        found[place] = true
      end
      seen[id] = true
    end
  end
  return found
end

-- Last of all: an error before this must not make the next try look like a duplicate.
local function remember_ids(dedupe, now, ids, first, last)
  local marks, size, at = {}, 0, digits(now)
  for index = first, last do
    marks[size + 1], marks[size + 2] = at, ids[index]
    size = size + 2
  end
  many('ZADD', dedupe, marks)
end
