"""Growing pauses between attempts."""

from random import Random


class Backoff:
    """The pauses after failures in a row: each is twice the one before, up to a limit.

    Args:
        first: The first pause, in seconds.
        most: The longest pause, in seconds.
        jitter: Spreads the attempts of many processes: a pause is then between half of its length and all of it.
    """

    def __init__(self, first: float, most: float, *, jitter: Random | None = None) -> None:
        self._first = first
        self._most = most
        self._jitter = jitter
        self._next = first

    def failed(self) -> float:
        """Return the seconds to wait before the next attempt."""
        pause, self._next = self._next, min(self._next * 2, self._most)
        return pause if self._jitter is None else pause * self._jitter.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Start anew: the next pause is the first one."""
        self._next = self._first
