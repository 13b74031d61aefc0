-- Reads the broadcasts after an entry; returns the number of the last broadcast, the entries, and 1 if more follow.
-- KEYS: meta, news. ARGV: last number read ('' to get the last number alone), largest number of entries.

local last = call('HGET', KEYS[1], 'b')
if not last then
  -- A unique first number, so that receivers notice a flush as a gap.
  last = digits(next_numbers(KEYS[1], 1))
  call('HSET', KEYS[1], 'b', last)
end
if ARGV[1] == '' or ARGV[1] == last then return {last, {}, 0} end
-- Frames may be large, so few are read at a time.
local entries, from = {}, '(' .. ARGV[1] .. '-0'
while #entries < tonumber(ARGV[2]) and left.bytes > 0 do
  local page = call('XRANGE', KEYS[2], from, '+', 'COUNT', LARGE)
  for _, entry in ipairs(page) do
    entries[#entries + 1] = entry
    left.bytes = left.bytes - #entry[2][6]
  end
  if #page < LARGE then break end
  from = '(' .. page[#page][1]
end
return {last, entries, (#entries >= tonumber(ARGV[2]) or left.bytes <= 0) and 1 or 0}
