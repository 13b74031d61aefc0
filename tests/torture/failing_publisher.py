"""A publisher that dies at a given point around commit, push and cleanup, or rolls back."""

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from sqlalchemy import text

from bus.publishing.outbox import Outbox
from bus.publishing.outbox_entries import Entry, EntryKind
from bus.publishing.outbox_sender import OutboxSender
from bus.publishing.relay import Relay
from infra.db import Transaction
from infra.mq import Message
from tests.torture.events import Job, Step
from tests.torture.opening import Opened, Plan, opened


async def run(plan: Plan) -> None:
    """Commit one row with an event before and one after it, and die at the given point."""
    point, key = str(plan.arguments["point"]), str(plan.arguments["key"])
    async with opened(plan) as site:
        POINTS[point]()
        await enter(site, key)
        # The relay, which runs concurrently, may be the task that dies.
        await asyncio.Event().wait()


async def enter(site: Opened, key: str) -> None:
    """Write one row with its events."""
    async with site.db.transaction() as tx:
        await site.bus.publish(Step(key=key, n=1))
        await tx.session.execute(text("INSERT INTO ledger VALUES (:key, 1)"), {"key": key})
        await site.bus.publish(Job(key=key, n=1))
        await site.bus.publish(Step(key=key, n=2))


def die() -> NoReturn:
    """Kill this process with SIGKILL."""
    os._exit(9)


def before_commit() -> None:
    """Die after all writes and before the commit."""
    put = Outbox.put

    async def put_and_die(
        self: Outbox, transaction: Transaction, messages: Sequence[tuple[EntryKind, Message]], cancelled: Sequence[str]
    ) -> NoReturn:
        await put(self, transaction, messages, cancelled)
        die()

    Outbox.put = put_and_die  # type: ignore[method-assign]  # the fault that this program is for


def after_commit() -> None:
    """Die after the commit and before the push."""

    def die_now(_self: Relay, _entries: Sequence[Entry], *, cancelled: bool) -> None:
        del cancelled
        die()

    Relay.committed = die_now  # type: ignore[method-assign,assignment]  # as above


def before_push() -> None:
    """Die just before the relay sends."""

    async def die_now(_self: OutboxSender, _entries: Sequence[Entry]) -> None:
        die()

    OutboxSender.publish = die_now  # type: ignore[method-assign,assignment]  # as above


def after_push() -> None:
    """Die after the first message was sent, before its row is deleted."""

    async def die_now(_self: OutboxSender, _entries: Sequence[Entry]) -> None:
        die()

    OutboxSender._remove = die_now  # type: ignore[method-assign,assignment]  # as above


def after_cleanup() -> None:
    """Die after some rows were deleted, while holding the relay lease."""
    remove = Outbox.remove

    async def remove_and_die(self: Outbox, entries: Collection[Entry]) -> NoReturn:
        await remove(self, entries)
        die()

    Outbox.remove = remove_and_die  # type: ignore[method-assign]  # as above


POINTS: dict[str, Callable[[], None]] = {
    "before commit": before_commit,
    "after commit": after_commit,
    "before push": before_push,
    "after push": after_push,
    "after cleanup": after_cleanup,
}
