"""A simulated operator, who retires a listener, retries dead letters, and pauses listeners."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import TypeVar

from infra.mq import (
    BacklogPolicy,
    ListenerInUse,
    QueueError,
    QueueIndeterminate,
    QueueUnavailable,
    SubscriptionNotFound,
)
from tests.simulation.journal import SimulatedJournal
from tests.simulation.link import Link
from tests.simulation.listeners import LEGACY
from tests.simulation.loop import Process

_T = TypeVar("_T")

EVERY = 1.0
"""Average seconds between two operations."""

LATENESS = 3.0
"""Seconds after which no request of the operator can still arrive."""

PAUSED = ("ordered", "sibling", "notes", "alarm")
"""The listeners that the operator pauses and resumes."""


class Operator:
    """An operator who repeats each request until it is answered."""

    def __init__(self, link: Link, process: Process, journal: SimulatedJournal, random: Random) -> None:
        self._link = link
        self._process = process
        self._journal = journal
        self._random = random
        self._link.conditions.dropped = random.uniform(0, 0.2)
        self._link.conditions.lost = random.uniform(0, 0.2)

    async def act(self, seconds: float) -> None:
        """Perform random operations for `seconds`, and return when all listeners are resumed."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(self._random.expovariate(1 / EVERY))
            await self._random.choice([self._retire, self._retry, self._pause])()
        await asyncio.sleep(LATENESS)
        for name in PAUSED:
            await self._request(partial(self._link.resume, name))

    async def _retire(self) -> None:
        backlog: BacklogPolicy = self._random.choice(["refuse", "discard", "dead"])
        await self._request(lambda: self._link.retire(LEGACY, backlog=backlog))

    async def _retry(self) -> None:
        letters = await self._request(lambda: self._link.dead_letters(limit=100))
        if letters:
            await self._request(lambda: self._link.retry_dead([it.id for it in letters]))

    async def _pause(self) -> None:
        name = self._random.choice(PAUSED)
        await self._request(lambda: self._link.pause(name))
        await asyncio.sleep(self._random.uniform(0, 1))
        await self._request(lambda: self._link.resume(name))

    async def _request(self, call: Callable[[], Awaitable[_T]]) -> _T | None:
        while True:
            try:
                return await call()
            except (QueueUnavailable, QueueIndeterminate):
                continue
            except (ListenerInUse, SubscriptionNotFound) as error:
                self._journal.note(self._process, f"refused: {error}")
                return None
            except QueueError as error:
                self._journal.note(self._process, f"failed: {type(error).__name__}: {error}")
                return None
