-- Sends frames to every receiver, by a short stream in which each entry names the number of the one before it.
-- KEYS: meta, news. ARGV: channel, origin, number of entries to keep, milliseconds to keep the stream, frames.

local count = #ARGV - 4
local last = call('HGET', KEYS[1], 'b') or '0'
local first = next_numbers(KEYS[1], count)
for index = 1, count do
  local number = digits(first + index - 1)
  call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], number .. '-0', 'p', last, 'o', ARGV[2], 'f', ARGV[4 + index])
  last = number
end
call('HSET', KEYS[1], 'b', last)
call('PEXPIRE', KEYS[2], ARGV[4])
call('PUBLISH', ARGV[1], '')
return count
