"""The offset of a server's clock from this machine's clock."""


class ClockOffset:
    """An estimate of the offset, from a server's answers to requests for its time.

    An answer proves only that the server read its clock between the request and the reply. An offset within that
    uncertainty counts as 0: processes on one machine, or with synchronized clocks, then use exactly the same time
    however busy they are, and a delay set by one process is never due early in another.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Seconds by which the server is ahead; 0 if the answers allow it, else accurate to half a round trip."""

        self._range = float("inf")

    def learn(self, asked_at: float, server: float, answered_at: float) -> None:
        """Replace the estimate if an answer contradicts it or is more accurate. All in seconds since the epoch."""
        if answered_at < asked_at:  # this machine's clock was set back just then
            return
        least, most = server - answered_at, server - asked_at
        if not least <= self.seconds <= most or most - least <= self._range:
            self.seconds, self._range = 0.0 if least <= 0 <= most else (least + most) / 2, most - least
        self._range *= 1.1  # clocks drift: an estimate loses accuracy as it ages
