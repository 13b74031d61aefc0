"""The division of one call of `Consumer.settle` into bounded steps."""

from collections.abc import Callable, Iterator, Sequence

from infra.mq.types import Settlement


def divided(
    settlements: Sequence[Settlement], *, most: int, most_bytes: int, size_of: Callable[[Settlement], int]
) -> Iterator[list[Settlement]]:
    """Divide settlements into steps; those of one claim stay together, in their order.

    A step has at most `most` settlements and, by `size_of`, `most_bytes` bytes, unless a single claim has more.
    """
    if len(settlements) <= most and sum(map(size_of, settlements)) <= most_bytes:
        yield list(settlements)
        return
    by_claim: dict[int, list[Settlement]] = {}
    for it in settlements:
        by_claim.setdefault(id(it.claim), []).append(it)
    step: list[Settlement] = []
    size = 0
    for together in by_claim.values():
        more = sum(map(size_of, together))
        if step and (len(step) + len(together) > most or size + more > most_bytes):
            yield step
            step, size = [], 0
        step += together
        size += more
    if step:
        yield step
