"""Statistics, dead letters and the commands of operators on SQLite."""

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial

from infra.mq.drivers.sql.sqlite import administration, inspection, registry, retiring
from infra.mq.drivers.sql.sqlite.access import FileAccess
from infra.mq.drivers.sql.sqlite.presence import Presence
from infra.mq.types import BacklogPolicy, DeadLetter, SubscriptionStats


class SqliteCommands:
    """The `OperatorCommands` on one file."""

    def __init__(self, access: FileAccess, presence: Presence) -> None:
        self._access = access
        self._clock = access.clock
        self._presence = presence

    async def stats(self, now: float) -> list[SubscriptionStats]:
        live = [names for _, names in self._presence.live()]
        return await self._access.read(partial(inspection.stats, live=live, now=now))

    async def warnings(self) -> list[str]:
        return await self._access.read(inspection.interrupted_retirements)

    async def dead_letters(
        self, subscription: str | None, event: str | None, limit: int, after: str | None
    ) -> list[DeadLetter]:
        return await self._access.read(
            partial(inspection.dead_letters, subscription=subscription, event=event, limit=limit, after=after)
        )

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        return await self._access.read(partial(inspection.dead_letter, dead_id=dead_id))

    async def retry_dead(self, dead_ids: Sequence[str], now: float) -> int:
        return await self._with_dead_letters(dead_ids, partial(administration.retry_some, now=now))

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        return await self._with_dead_letters(dead_ids, administration.discard_some)

    async def set_paused(self, name: str, *, paused: bool) -> None:
        await self._access.write(partial(registry.set_paused, name=name, paused=paused))

    async def unblock(self, name: str, ordering_key: str, now: float, *, skip: bool) -> None:
        operation = partial(administration.unblock, name=name, key=ordering_key, skip=skip)
        await self._access.write(self._access.at(now, operation))

    async def retire(self, name: str, event: str | None, backlog: BacklogPolicy, now: float) -> int:
        access = self._access
        found = await access.read(partial(retiring.waiting, name=name, event=event)) if backlog == "refuse" else None
        live = self._presence.live()
        begin = partial(retiring.begin, name=name, event=event, backlog=backlog, live=live, found=found)
        walk = await access.write(begin)
        count = await access.in_steps(partial(retiring.remove_some, clock=self._clock.time), walk)
        await access.write(access.at(now, partial(retiring.finish, walk=walk)))
        return count

    async def _with_dead_letters(
        self, dead_ids: Sequence[str], work: Callable[[sqlite3.Connection, Sequence[int]], tuple[int, int]]
    ) -> int:
        numbers = administration.numbers_of(dead_ids)

        def step(db: sqlite3.Connection, place: int) -> tuple[int, int | None]:
            count, seen = work(db, numbers[place:])
            return count, place + seen if place + seen < len(numbers) else None

        return await self._access.in_steps(step, 0) if numbers else 0
