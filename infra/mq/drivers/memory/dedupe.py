"""The ids of accepted messages, for deduplication."""

from collections import deque

from infra.clock import Clock
from infra.mq.limits import RESENT_IDS


class RecentIds:
    """The ids accepted in the last `window` seconds, each with its event."""

    def __init__(self, clock: Clock, window: float) -> None:
        self._clock = clock
        self._window = window
        self._accepted: dict[tuple[str, str], float] = {}
        self._ages: deque[tuple[float, tuple[str, str]]] = deque()
        self._resent: dict[tuple[str, str], float] = {}
        """Time of acceptance by the queue's clock of each id added with `since`; the latest ones last."""

    def add(self, event: str, message_id: str, since: float | None = None) -> bool:
        """Add an id; return False if it is a duplicate: within the window or, with `since`, since that time."""
        if since is None:
            return self._add(event, message_id)
        key = (event, message_id)
        accepted_at = self._resent.get(key)
        if not self._add(event, message_id) or (accepted_at is not None and accepted_at >= since):
            return False
        self._resent.pop(key, None)  # inserted anew, so that the oldest stays first
        self._resent[key] = self._clock.time()
        if len(self._resent) > RESENT_IDS:
            del self._resent[next(iter(self._resent))]
        return True

    def _add(self, event: str, message_id: str) -> bool:
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
        self._resent.pop((event, message_id), None)
