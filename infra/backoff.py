"""Growing delays between attempts."""

from random import Random


class Backoff:
    """The delays before the next attempt after consecutive failures: each is twice the previous one, up to a limit.

    Args:
        first: The first delay, in seconds.
        most: The longest delay, in seconds.
        jitter: Spreads the attempts of many processes: draws each delay between half of its length and all of it.
    """

    def __init__(self, first: float, most: float, *, jitter: Random | None = None) -> None:
        self._first = first
        self._most = most
        self._jitter = jitter
        self._next = first

    def failed(self) -> float:
        """Count a failure; return the seconds to wait before the next attempt."""
        delay, self._next = self._next, min(self._next * 2, self._most)
        return delay if self._jitter is None else delay * self._jitter.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Count a success: the next delay is the first one again."""
        self._next = self._first
