"""What a worker knows that it owns."""

from collections.abc import Iterable

from infra.mq.types import Claim, Outcome, Settlement

PENDING_OUTCOMES = frozenset({Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.BLOCK})
"""Outcomes after which a delivery stays in the queue; an ordered one gives its mailbox back."""


class OwnedClaims:
    """The claims of one worker by their fences, which grow: what a lost answer claimed has higher ones than all before.

    Args:
        number: The worker's own number, from the same sequence as the fences.
    """

    def __init__(self, number: int) -> None:
        self.latest = number
        """The highest number known."""

        self._open: dict[int, set[int | str]] = {}
        """The deliveries of each unordered claim that are not settled; a mailbox counts as one thing."""

        self._uncertain_since: int | None = None

    @property
    def uncertain(self) -> bool:
        """Whether the worker may own more than it knows."""
        return self._uncertain_since is not None

    def mark_uncertain(self, since: int) -> None:
        """Note that a claim may have been made after the number `since` of which nothing is known."""
        self._uncertain_since = since if self._uncertain_since is None else min(since, self._uncertain_since)

    def mark_certain(self) -> None:
        """Note that the worker owns no more than it knows."""
        self._uncertain_since = None

    def unknown(self) -> tuple[int, list[int]]:
        """Return the number after which claims may be unknown, and those after it that are known."""
        since = self.latest if self._uncertain_since is None else self._uncertain_since
        return since, [fence for fence in self._open if fence > since]

    def claimed(self, claims: Iterable[Claim]) -> None:
        """Note claims that were answered."""
        # Unordered claims of one answer have one fence, and come one after the other.
        fence, held = -1, set[int | str]()
        for it in claims:
            if it.fence != fence:
                fence = it.fence
                held = self._open.setdefault(fence, set())
                self.latest = max(self.latest, fence)
            held.add("" if it.ordered else it.deliveries[0].id)

    def settled(self, settlements: Iterable[Settlement]) -> None:
        """Note settlements that were carried out, or fenced."""
        for it in settlements:
            rest = self._open.get(it.claim.fence)
            if rest is None or (it.claim.ordered and not (it.close or it.outcome in PENDING_OUTCOMES)):
                continue
            rest.discard("" if it.claim.ordered else it.delivery.id)
            if not rest:
                del self._open[it.claim.fence]
