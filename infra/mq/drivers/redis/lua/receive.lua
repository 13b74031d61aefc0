-- Reads what was broadcast after an entry; also tells which is the last of all.
-- KEYS: meta, news. ARGV: last number seen ('' to learn only the last), how many at most.

local last = call('HGET', KEYS[1], 'b')
if not last then
  -- A number of its own for every beginning: after a flush it shows that something is missing.
  last = digits(next_numbers(KEYS[1], 1))
  call('HSET', KEYS[1], 'b', last)
end
if ARGV[1] == '' or ARGV[1] == last then return {last, {}} end
return {last, call('XRANGE', KEYS[2], '(' .. ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])}
