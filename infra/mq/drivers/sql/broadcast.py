"""The SQL driver's broadcasts."""

import asyncio

from infra.mq.drivers.sql.dialect import QueueDialect


class SqlBroadcasts:
    """The broadcasts for one receiver, as a `BroadcastSource`; it begins after number `last`."""

    def __init__(self, dialect: QueueDialect, origin: str, last: int) -> None:
        self._dialect = dialect
        self._origin = origin
        self._last = last
        self._interruptions = dialect.interruptions

    async def read(self) -> tuple[list[bytes], bool]:
        interruptions = self._dialect.interruptions
        frames, self._last, missing = await self._dialect.broadcasts_after(self._last, self._origin)
        interrupted = interruptions != self._interruptions
        self._interruptions = interruptions
        return frames, missing or interrupted

    def watch(self, changed: asyncio.Event) -> None:
        self._dialect.watch(changed)

    def unwatch(self, changed: asyncio.Event) -> None:
        self._dialect.unwatch(changed)
