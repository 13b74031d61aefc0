-- Returns the time of the queue's clock, in microseconds. KEYS: meta.

return digits(clock('', KEYS[1]))
