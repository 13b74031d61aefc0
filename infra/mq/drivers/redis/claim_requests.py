"""The numbers of a consumer's claim requests, and which of them may have claims that the consumer does not know."""


class ClaimRequests:
    """Increasing numbers of claim requests, and what is known about their answers.

    A request that claimed nothing may register its worker as waiting. During this wait, which has the request's number,
    one delivery may be handed over to the worker. So a worker may own an unknown claim for two reasons: the answer to a
    request was lost, or the notification that hands over a delivery.
    """

    def __init__(self) -> None:
        self.last = 0
        """The number of the last request."""

        self._successful = 0
        self._wait: int | None = None
        self._expected: set[int] = set()
        self._void = 0

    def next(self) -> int:
        """Return the number of a new request."""
        self.last += 1
        return self.last

    def answered(self, *, claimed: bool, waits: bool, ended: bool) -> None:
        """Note the answer to the last request; `ended`: the wait before it ended without a handed-over delivery."""
        if claimed:
            self._successful = self.last
        if self._wait is not None and not ended:
            self._expected.add(self._wait)
        self._wait = self.last if waits and not claimed else None

    def handed_over(self, wait: int) -> bool:
        """Note a delivery handed over in a wait; return False if `find_unknown_claims` has found it before."""
        if wait < self._void:
            return False
        if wait == self._wait:
            self._wait = None
        self._expected.discard(wait)
        return True

    def may_own_more(self, last: int, wait: bytes) -> bool:
        """Return whether unknown claims may exist, by the server's numbers of the last successful request and wait."""
        is_handed_over = self._wait is not None and wait != str(self._wait).encode()
        return last > self._successful or is_handed_over or bool(self._expected)

    def void(self) -> int:
        """Return a number up to which all requests become void; the caller finds what was handed over before."""
        self._void = self.next()
        return self._void

    def found_all(self) -> None:
        """Note that all claims of the worker are known now."""
        self._successful, self._wait = self._void, None
        self._expected.clear()
