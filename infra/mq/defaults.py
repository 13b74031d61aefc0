"""The defaults of the options that several drivers and the settings have."""

LEASE = 10.0
"""Seconds without a renewal after which a worker is considered dead, where its driver cannot detect its end."""

DEDUPE_WINDOW = 120.0
"""Seconds for which the ids of messages with `dedupe` are remembered."""

BROADCAST_KEPT = 60.0
"""Seconds for which broadcasts are stored for processes that read late."""
