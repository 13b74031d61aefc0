"""What both databases keep, and read in the same way."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infra.mq.refusals import alias_conflict, order_conflict
from infra.mq.types import DeadLetter, Subscription


@dataclass(frozen=True, slots=True)
class StoredSubscription:
    """A subscription as the database has it."""

    id: int
    ordered: bool


def refuse_conflict(wanted: Subscription, kept: dict[str, StoredSubscription]) -> None:
    """Refuse what contradicts what is kept under a subscription's names.

    Raises:
        SubscriptionConflict: they are those of two, or of one of the other kind.
    """
    by_number = {it.id: name for name, it in kept.items()}
    if len(by_number) > 1:
        second, first = sorted(by_number.values(), key=lambda name: name == wanted.name)[-2:]
        raise alias_conflict(first, second)
    if kept and (ordered := next(iter(kept.values())).ordered) != wanted.ordered:
        raise order_conflict(wanted.name, ordered=ordered)


def dead_letter_of(row: Iterable[Any]) -> DeadLetter:
    """Return what a row of the dead letters says, its columns in the order of the statements that read them."""
    number, subscription, message_id, event, key, body, error, traceback, failures, crashes, published_at, died_at = row
    return DeadLetter(
        id=str(number),
        subscription=subscription,
        message_id=message_id,
        event=event,
        ordering_key=key,
        body=body,
        error=error,
        traceback=traceback,
        failures=failures,
        crashes=crashes,
        published_at=published_at,
        died_at=died_at,
    )


def dead_letter_number(dead_id: str) -> int | None:
    """Return the number behind the id of a dead letter; None for what never was one."""
    return int(dead_id) if dead_id.isascii() and dead_id.isdigit() and len(dead_id) < 19 else None  # noqa: PLR2004
