"""How far a server's clock is ahead of this machine's."""


class ClockOffset:
    """The difference, learned from answers of a server that was asked for its time.

    An answer proves no more than that the server read its clock between question and answer. A difference that it
    cannot tell from none is none: on one machine, and where clocks are kept in step, all processes then go by exactly
    one time however busy they are, and what one delays another does not find due early.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """How many the server is ahead; to within half the round trip, where it is not 0."""

        self._range = float("inf")

    def learn(self, asked_at: float, server: float, answered_at: float) -> None:
        """Believe an answer where it contradicts what is known, or tells it better. All in seconds since the epoch."""
        if answered_at < asked_at:  # this machine's clock was set back just then
            return
        least, most = server - answered_at, server - asked_at
        if not least <= self.seconds <= most or most - least <= self._range:
            self.seconds, self._range = 0.0 if least <= 0 <= most else (least + most) / 2, most - least
        self._range *= 1.1  # clocks drift: what was known better once is known less well by now
