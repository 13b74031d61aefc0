-- Parked deliveries, or mailboxes: a SET ("place") for every need, and an index, a SET of the needs that have a place. A
-- need is the name of an event, or another text. Earlier releases parked by events alone and had no index.
-- `parks` has the key of the index, and at its numbers the places that the caller knows.

local function park(parks, number, id)
  local place = parks[number]
  call('SADD', place, id)
  call('SADD', parks.index, place:sub(#parks.index + 1))
  return place
end

local function parking_places(parks)
  local places, seen = {}, {}
  for _, place in ipairs(parks) do
    places[#places + 1] = place
    seen[place] = true
  end
  for _, need in ipairs(call('SMEMBERS', parks.index)) do
    local place = parks.index .. need
    if not seen[place] then places[#places + 1] = place end
  end
  return places
end

-- Removes an empty place from the index.
local function close_place(parks, place)
  if call('EXISTS', place) == 0 then call('SREM', parks.index, place:sub(#parks.index + 1)) end
end
