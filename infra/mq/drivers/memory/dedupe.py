"""The memory of recent message ids."""

from collections import deque

from infra.clock import Clock


class RecentIds:
    """Ids of the last `window` seconds."""

    def __init__(self, clock: Clock, window: float) -> None:
        self._clock = clock
        self._window = window
        self._ids: set[str] = set()
        self._ages: deque[tuple[float, str]] = deque()

    def add(self, message_id: str) -> bool:
        """Remember an id; False if it was remembered already."""
        now = self._clock.monotonic()
        while self._ages and self._ages[0][0] <= now - self._window:
            self._ids.discard(self._ages.popleft()[1])
        if message_id in self._ids:
            return False
        self._ids.add(message_id)
        self._ages.append((now, message_id))
        return True
