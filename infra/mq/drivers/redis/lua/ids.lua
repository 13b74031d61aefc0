-- Messages that are accepted once: a ZSET of event, NUL, id, by time. One counts only for the window, however long it is
-- kept. Every id is looked for, also one that was made for this very publish: the publish may come late, after whoever
-- sent it has given it up and published the id again.
-- Releases before this one kept ids alone, under another key, which ends some time after the last of them.

local function id_of(mark) return mark:sub((mark:find('\0', 1, true)) + 1) end

-- Which of ARGV[first] to ARGV[last] were accepted since then, or, if they may be repeated, come twice among themselves: a
-- set of their places, or nil if none is.
local function repeated(accepted, older, first, last, since, may_repeat)
  local found, seen = nil, {}
  if first > last then return nil end
  local function note(scores, at)
    for offset, score in ipairs(scores) do
      if score and tonumber(score) > since then
        found = found or {}
        found[at + offset - 1] = true
      end
    end
  end
  local was_updated = call('EXISTS', older) == 1
  for at = first, last, CHUNK do
    local to = math.min(at + CHUNK - 1, last)
    note(call('ZMSCORE', accepted, unpack(ARGV, at, to)), at)
    if was_updated then
      local ids = {}
      for place = at, to do ids[#ids + 1] = id_of(ARGV[place]) end
      note(call('ZMSCORE', older, unpack(ids)), at)
    end
  end
  for at = first, may_repeat and last or first - 1 do
    if seen[ARGV[at]] then
      found = found or {}
      found[at] = true
    end
    seen[ARGV[at]] = true
  end
  return found
end

-- Last of all: an error before this must not make the next try look like a duplicate.
local function remember_ids(accepted, now, marks, first, last)
  local scored, size, at = {}, 0, digits(now)
  for index = first, last do
    scored[size + 1], scored[size + 2] = at, marks[index]
    size = size + 2
  end
  many('ZADD', accepted, scored)
end
