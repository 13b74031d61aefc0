"""Publishing on SQLite: deduplication, and one delivery for each subscription."""

import sqlite3
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Self

from infra.mq.drivers.sql.sqlite.clock import QueueClock
from infra.mq.drivers.sql.sqlite.joinable import Joinable
from infra.mq.drivers.sql.sqlite.mailboxes import MailboxRow, open_mailboxes
from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.drivers.sql.sqlite.scheduling import HAS_DUE, Overdue
from infra.mq.types import Message

FORGOTTEN_EXTRA = 100
"""The number of expired rows that a call removes beyond the number that it adds."""

_INSERT_DELIVERY = """
INSERT INTO beneath_delivery
    (id, subscription, state, due_at, published_at, message_id, event, ordering_key, mailbox, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_ROUTES = f"""
SELECT s.id, s.ordered, s.ordered AND {HAS_DUE}
FROM beneath_route AS r CROSS JOIN beneath_subscription AS s ON s.id = r.subscription
WHERE r.event = :event ORDER BY r.subscription
"""  # noqa: S608  # constants only

# `beneath_dedupe` holds the ids that an earlier release accepted; until they expire, they count for every event.
_ACCEPT_ID = """
INSERT INTO beneath_accepted (event, id, at)
SELECT :event, :id, :now WHERE NOT EXISTS (SELECT 1 FROM beneath_dedupe WHERE id = :id AND at > :outdated)
ON CONFLICT (event, id) DO UPDATE SET at = :now WHERE at <= :outdated
"""
_PRUNE_IDS = """
DELETE FROM beneath_accepted WHERE (event, id) IN (
    SELECT event, id FROM beneath_accepted WHERE at <= ? ORDER BY at LIMIT ?
)
"""
_PRUNE_FORMER_IDS = """
DELETE FROM beneath_dedupe WHERE id IN (SELECT id FROM beneath_dedupe WHERE at <= ? ORDER BY at LIMIT ?)
"""

Routes = dict[str, list[tuple[int, int, int]]]
DeliveryRow = tuple[int, int, int, float, float, str, str, str | None, str | None, bytes]


class Publish(Joinable):
    """A publish: it stores `messages` at the later of `now` and the time at which it gets the write lock."""

    __slots__ = ("_clock", "_messages", "_now", "_window")

    def __init__(self, messages: Sequence[Message], dedupe_window: float, clock: QueueClock, *, now: float) -> None:
        self._messages = messages
        self._window = dedupe_window
        self._clock = clock
        self._now = now

    @classmethod
    def run_all(  # pyright: ignore[reportIncompatibleMethodOverride]  # it takes the base's Self for the base
        cls, db: sqlite3.Connection, operations: Sequence[Self]
    ) -> None:
        first = operations[0]
        messages = first._messages  # noqa: SLF001  # the same class
        if len(operations) > 1:
            messages = list(chain.from_iterable([it._messages for it in operations]))  # noqa: SLF001
        now = first._clock.reach(db, max([it._now for it in operations]))  # noqa: SLF001
        publish(db, messages, first._window, now=now)  # noqa: SLF001


def publish(db: sqlite3.Connection, messages: Sequence[Message], dedupe_window: float, *, now: float) -> None:
    """Store one delivery of every message for each subscription of its event."""
    accepted = _without_duplicates(db, messages, now, dedupe_window)
    routes: Routes = {
        event: db.execute(_ROUTES, {"event": event, "now": now}).fetchall() for event in {it.event for it in accepted}
    }
    count = sum(len(routes[it.event]) for it in accepted)
    if not count:
        return
    behind = {number for subscriptions in routes.values() for number, _, is_behind in subscriptions if is_behind}
    rows, mailboxes = _rows_of(accepted, routes, now, reserve(db, count), Overdue(db, behind, now))
    db.executemany(_INSERT_DELIVERY, rows)
    if mailboxes:
        open_mailboxes(db, mailboxes)


def _rows_of(
    messages: Sequence[Message], routes: Routes, now: float, number: int, overdue: Overdue
) -> tuple[list[DeliveryRow], Collection[MailboxRow]]:
    rows: list[DeliveryRow] = []
    mailboxes: dict[tuple[int, str], MailboxRow] = {}
    for it in messages:
        due_at = now if it.due_at is None else it.due_at
        for subscription, ordered, _ in routes[it.event]:
            key, mailbox, state, at = it.ordering_key, None, 0, due_at
            if ordered:
                mailbox, state = key or "", 4
            if due_at > now:
                state = 3
            elif mailbox is not None and overdue.in_mailbox(subscription, mailbox):
                # Messages that became due earlier must join the mailbox before this one.
                state, at = 3, now
            elif mailbox is not None:
                mailboxes.setdefault((subscription, mailbox), (subscription, mailbox, due_at, number))
            rows.append((number, subscription, state, at, it.published_at, it.id, it.event, key, mailbox, it.body))
            number += 1
    return rows, mailboxes.values()


def _without_duplicates(
    db: sqlite3.Connection, messages: Sequence[Message], now: float, window: float
) -> Sequence[Message]:
    if not any(it.dedupe for it in messages):
        return messages
    outdated = now - window

    def is_new(it: Message) -> bool:
        values = {"event": it.event, "id": it.id, "now": now, "outdated": outdated}
        return db.execute(_ACCEPT_ID, values).rowcount > 0

    accepted = [it for it in messages if not it.dedupe or is_new(it)]
    for prune in (_PRUNE_IDS, _PRUNE_FORMER_IDS):
        db.execute(prune, (outdated, len(messages) + FORGOTTEN_EXTRA))
    return accepted
