"""Rows that both dialects read in the same way: subscriptions and dead letters."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infra.mq.types import DeadLetter


@dataclass(frozen=True, slots=True)
class SubscriptionRow:
    """A subscription as stored in the database."""

    id: int
    ordered: bool


DEAD_LETTERS = """
SELECT id, subscription, message_id, event, ordering_key, body, error, traceback, failures, crashes, published_at,
    died_at
FROM beneath_dead_letter
"""


def dead_letter_of(row: Iterable[Any]) -> DeadLetter:
    """Return the dead letter of a row of `DEAD_LETTERS`."""
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
