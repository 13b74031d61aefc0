-- Deletes dead letters; returns how many existed. KEYS: meta, dead, deads. ARGV: numbers.

local meta, dead, deads = KEYS[1], KEYS[2], KEYS[3]
local count = 0
for _, number in ipairs(ARGV) do
  local entry = call('ZRANGEBYSCORE', deads, number, number)[1]
  if entry and call('HDEL', dead, number) == 1 then
    local field = 'd:' .. entry:match('^.-:(.-):')
    call('ZREM', deads, entry)
    if call('HINCRBY', meta, field, -1) <= 0 then call('HDEL', meta, field) end
    count = count + 1
  end
end
return count
