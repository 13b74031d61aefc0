"""Which of a consumer's requests the server has carried out, as far as the consumer knows."""


class Requests:
    """Numbers of claims, each larger than the one before, and what is known of the answers.

    A claim that claimed nothing may register its worker as waiting: in that sleep, which has the claim's number, one
    message may be handed over to it. So two things may make a worker own what it never heard of: a claim whose answer
    was lost, and a message whose notification was.
    """

    def __init__(self) -> None:
        self.last = 0
        """The number of the last claim that was asked for."""

        self._heard = 0
        self._sleep: int | None = None
        self._expected: set[int] = set()
        self._void = 0

    def next(self) -> int:
        """Return the number of a new claim."""
        self.last += 1
        return self.last

    def answered(self, *, claimed: bool, sleeps: bool, ended: bool) -> None:
        """Take note of the answer to the last claim; `ended`: nothing was handed over in the sleep before it."""
        if claimed:
            self._heard = self.last
        if self._sleep is not None and not ended:
            self._expected.add(self._sleep)
        self._sleep = self.last if sleeps and not claimed else None

    def handed_over(self, sleep: int) -> bool:
        """Take note of a message that was handed over; return whether it has not been found otherwise before."""
        if sleep < self._void:
            return False
        if sleep == self._sleep:
            self._sleep = None
        self._expected.discard(sleep)
        return True

    def may_own_more(self, last: int, sleep: bytes) -> bool:
        """Return whether something is owned that was not heard of, as the server knows of a last claim and a sleep."""
        is_handed_over = self._sleep is not None and sleep != str(self._sleep).encode()
        return last > self._heard or is_handed_over or bool(self._expected)

    def void(self) -> int:
        """Return a number up to which all claims are to be void; what was handed over before it will be found."""
        self._void = self.next()
        return self._void

    def found_all(self) -> None:
        """Take note that everything that is owned has been found."""
        self._heard, self._sleep = self._void, None
        self._expected.clear()
