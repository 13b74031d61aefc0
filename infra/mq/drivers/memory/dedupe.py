"""The ids of recent messages, for deduplication."""

from collections import deque

from infra.clock import Clock


class RecentIds:
    """The ids of the last `window` seconds, each together with its event."""

    def __init__(self, clock: Clock, window: float) -> None:
        self._clock = clock
        self._window = window
        self._accepted: dict[tuple[str, str], float] = {}
        self._ages: deque[tuple[float, tuple[str, str]]] = deque()

    def add(self, event: str, message_id: str) -> bool:
        """Add an id; False if it is a duplicate."""
        now = self._clock.monotonic()
        while self._ages and self._ages[0][0] <= now - self._window:
            accepted_at, key = self._ages.popleft()
            if self._accepted.get(key) == accepted_at:
                del self._accepted[key]
        key = (event, message_id)
        if key in self._accepted:
            return False
        self._accepted[key] = now
        self._ages.append((now, key))
        return True

    def forget(self, event: str, message_id: str) -> None:
        """Remove an id, so that it is accepted again."""
        self._accepted.pop((event, message_id), None)
