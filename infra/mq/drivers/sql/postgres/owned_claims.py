"""The claims that a worker knows to own, to find those of lost answers."""

from collections.abc import Iterable

from infra.mq.types import Claim, Outcome, Settlement

PENDING_OUTCOMES = frozenset({Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.BLOCK})
"""Outcomes after which a delivery stays in the queue; for an ordered one they release its mailbox."""


class OwnedClaims:
    """The claims of one worker by their fences.

    Fences grow, so that the claims of a lost answer have higher ones than all earlier claims.

    Args:
        number: The worker's number, from the same sequence as the fences.
    """

    def __init__(self, number: int) -> None:
        self.latest = number
        """The highest known fence."""

        self._open: dict[int, set[int | str]] = {}
        """The unsettled deliveries of each fence; a mailbox counts as one entry."""

        self._uncertain_since: int | None = None
        self.lost_answers = 0
        """The number of claims so far whose answer was lost."""

    @property
    def uncertain(self) -> bool:
        """Whether the worker may own claims that it does not know."""
        return self._uncertain_since is not None

    def mark_uncertain(self, since: int) -> None:
        """Record that there may be unknown claims with fences above `since`."""
        self._uncertain_since = since if self._uncertain_since is None else min(since, self._uncertain_since)
        self.lost_answers += 1

    def mark_certain(self, lost_answers: int) -> None:
        """Record that the unknown claims were released, unless more answers than these were lost meanwhile."""
        if self.lost_answers == lost_answers:
            self._uncertain_since = None

    def unknown(self) -> tuple[int, list[int]]:
        """Return the fence above which claims may be unknown, and the known fences above it."""
        since = self.latest if self._uncertain_since is None else self._uncertain_since
        return since, [fence for fence in self._open if fence > since]

    def claimed(self, claims: Iterable[Claim]) -> None:
        """Add the claims of an answer."""
        # Unordered claims of one answer share a fence, and follow each other.
        fence, held = -1, set[int | str]()
        for it in claims:
            if it.fence != fence:
                fence = it.fence
                held = self._open.setdefault(fence, set())
                self.latest = max(self.latest, fence)
            held.add("" if it.ordered else it.deliveries[0].id)

    def settled(self, settlements: Iterable[Settlement]) -> None:
        """Remove the claims of settlements that were carried out or fenced."""
        for it in settlements:
            rest = self._open.get(it.claim.fence)
            if rest is None or (it.claim.ordered and not (it.close or it.outcome in PENDING_OUTCOMES)):
                continue
            rest.discard("" if it.claim.ordered else it.delivery.id)
            if not rest:
                del self._open[it.claim.fence]
