"""Rows that both dialects read in the same way: subscriptions and dead letters."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infra.mq.refusals import alias_conflict, order_conflict
from infra.mq.types import DeadLetter, Subscription


@dataclass(frozen=True, slots=True)
class SubscriptionRow:
    """A subscription as stored in the database."""

    id: int
    ordered: bool


def refuse_conflict(wanted: Subscription, kept: dict[str, SubscriptionRow]) -> None:
    """Check a declaration against `kept`, the stored subscriptions of its name and aliases.

    Raises:
        SubscriptionConflict: the names belong to two subscriptions, or to one that is ordered and should not be, or the
            reverse.
    """
    by_number = {it.id: name for name, it in kept.items()}
    if len(by_number) > 1:
        second, first = sorted(by_number.values(), key=lambda name: name == wanted.name)[-2:]
        raise alias_conflict(first, second)
    if kept and (ordered := next(iter(kept.values())).ordered) != wanted.ordered:
        raise order_conflict(wanted.name, ordered=ordered)


def dead_letter_of(row: Iterable[Any]) -> DeadLetter:
    """Return the dead letter of a row, whose columns are in the order of the unpacking below."""
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
    """Return the row number of a dead letter's id; None if `dead_id` is not a valid id."""
    return int(dead_id) if dead_id.isascii() and dead_id.isdigit() and len(dead_id) < 19 else None  # noqa: PLR2004
