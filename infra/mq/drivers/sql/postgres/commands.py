"""Statistics, dead letters and the commands of operators on PostgreSQL."""

from collections.abc import Sequence
from functools import partial

from infra.mq.drivers.sql.postgres import (
    administration,
    horizon,
    inspection,
    membership,
    publishing,
    registry,
    retiring,
)
from infra.mq.drivers.sql.postgres.access import ServerAccess
from infra.mq.drivers.sql.postgres.workers import PostgresWorkers
from infra.mq.refusals import in_use
from infra.mq.types import BacklogPolicy, DeadLetter, SubscriptionStats


class PostgresCommands:
    """The `OperatorCommands` on one database; `lease` is that of its workers, in seconds."""

    def __init__(self, access: ServerAccess, workers: PostgresWorkers, lease: float) -> None:
        self._access = access
        self._workers = workers
        self._lease = lease

    async def stats(self, now: float) -> list[SubscriptionStats]:
        live = [names for _, names in await self._access.read(partial(membership.live, lease=self._lease))]
        return await self._access.read(partial(inspection.stats, live=live, now=now), several=True)

    async def warnings(self) -> list[str]:
        found = await self._access.read(horizon.warnings, several=True)
        return found + await self._access.read(inspection.interrupted_retirements)

    async def dead_letters(
        self, subscription: str | None, event: str | None, limit: int, after: str | None
    ) -> list[DeadLetter]:
        operation = partial(inspection.dead_letters, subscription=subscription, event=event, limit=limit, after=after)
        return await self._access.read(operation, several=True)

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        return await self._access.read(partial(inspection.dead_letter, dead_id=dead_id))

    async def retry_dead(self, dead_ids: Sequence[str], now: float) -> int:
        await self._promote(now)
        count = 0
        for step in await self._steps_of(dead_ids):
            count += await self._access.change(partial(administration.retry_dead, numbers=step, now=now))
        return count

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        count = 0
        for step in await self._steps_of(dead_ids):
            count += await self._access.change(partial(administration.discard_dead, numbers=step))
        return count

    async def set_paused(self, name: str, *, paused: bool) -> None:
        await self._access.change(partial(registry.set_paused, name=name, paused=paused))

    async def unblock(self, name: str, ordering_key: str, now: float, *, skip: bool) -> None:
        operation = partial(administration.unblock, name=name, key=ordering_key, now=now, skip=skip)
        await self._access.change(operation)

    async def retire(self, name: str, event: str | None, backlog: BacklogPolicy, now: float) -> int:
        access = self._access
        if event is None:
            names = await access.read(partial(registry.names_of, name=name), several=True)
            if (user := await self._workers.user_of(names)) is not None:
                raise in_use(name, user)
        found = await self._count_backlog(name, event) if backlog == "refuse" else None
        begin = partial(
            retiring.begin, name=name, event=event, backlog=backlog, found=found, now=now, lease=self._lease
        )
        retirement = await access.change_registry(begin)
        count = await access.in_steps(partial(retiring.step, retirement=retirement, now=now))
        await access.in_steps(partial(retiring.drop_mailboxes, retirement=retirement))
        await access.change_registry(partial(retiring.end, retirement=retirement, now=now))
        return count

    async def _steps_of(self, dead_ids: Sequence[str]) -> list[list[int]]:
        return await self._access.read(partial(administration.steps_of, dead_ids=dead_ids), several=True)

    async def _promote(self, now: float) -> None:
        """Promote all due messages but those locked by other transactions."""
        after: publishing.Position | None = publishing.START
        while after is not None:
            _, after = await self._access.attempt(partial(publishing.promote, now=now, after=after))

    async def _count_backlog(self, name: str, event: str | None) -> retiring.Found:
        # It may read all deliveries, so it must not make publishers wait.
        since = await self._access.read(retiring.last_number)
        await self._access.wait_for_publishers()  # then all deliveries with a number up to `since` are committed
        count = await self._access.read(partial(retiring.count_backlog, name=name, event=event), several=True)
        return retiring.Found(count, since)
