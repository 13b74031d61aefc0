-- Searches a bounded number of claims for unregistered owners, which can neither settle nor be found dead. Returns the
-- number of subscriptions searched completely, the cursor in the next one, and the owners.
-- KEYS: leases, the claims of each subscription. ARGV: cursor in the first subscription.

local cursor, seen, known, unknown, PAGE = ARGV[1], 0, {}, {}, 200
for index = 2, #KEYS do
  repeat
    local page = call('HSCAN', KEYS[index], cursor, 'COUNT', PAGE)
    cursor = page[1]
    for at = 2, #page[2], 2 do
      local owner = page[2][at]
      seen = seen + 1
      if not known[owner] then
        known[owner] = true
        if not call('ZSCORE', KEYS[1], owner) then unknown[#unknown + 1] = owner end
      end
    end
  until cursor == '0' or seen >= PAGE
  if seen >= PAGE then return {cursor == '0' and index - 1 or index - 2, cursor, unknown} end
end
return {#KEYS - 1, '0', unknown}
