"""The application: opens, runs and closes everything in a container."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from beneath.runtime.lifecycle import Lifecycle, stop_signals
from beneath.runtime.processes import notify_parent, watch_parent
from beneath.startables import STARTABLES, Launch, Startable, built, select
from bus import Bus
from dependencies import AllServices, Container, Settings
from dependencies.completeness import check_completeness
from dependencies.migrations import HISTORIES
from infra.db import Database
from infra.db.histories import is_current
from infra.mq import MessageQueue, QueueUnavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MARGIN = 5.0
"""Seconds that a runnable gets at shutdown beyond its own grace period."""

CLOSE_TIMEOUT = 10.0
"""Seconds after which closing the bus, the queue or the database is abandoned."""


class Application:
    """Opens, runs and closes everything in a container. Use each instance once.

    Expected errors, each with a text of one line, are `SetupError`, `DatabaseError`, `QueueError` and `BusError`.
    """

    def __init__(self, container: Container) -> None:
        self.container = container
        self.settings: Settings = container.settings()
        self._lifecycle = Lifecycle(grace=max(self.settings.control.grace, self.settings.worker.grace) + MARGIN)
        self.urls: dict[str, str] = {}
        """The HTTP URL of each running startable that has one, by name."""

    @property
    def services(self) -> AllServices:
        """All services, constructed at the first use."""
        services: AllServices = self.container.services.all()
        return services

    @property
    def bus(self) -> Bus:
        """The bus."""
        bus: Bus = self.container.infra.bus()
        return bus

    @property
    def grace(self) -> float:
        """Seconds that the runnables get at shutdown."""
        return self._lifecycle.grace

    @property
    def stopping(self) -> bool:
        """Whether a shutdown was requested."""
        return self._lifecycle.stopping

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Application"]:
        """Construct and connect everything for the block. Events can be published; no worker handles them."""
        check_completeness(self.container)
        async with open_queue(self.container, or_later=self.bus.has_outbox):
            self.container.services.all()
            try:
                await self.bus.start()
                yield self
            finally:
                await _bounded("bus", self.bus.close)

    @asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator["Application"]:
        """Run the startables `names` in this process for the block.

        If one fails, the block is cancelled and its error is raised. For tests and for embedding: signal handlers stay
        unchanged, and `worker.processes` is ignored.
        """
        startables = select(names)
        async with self.opened():
            with built(startables, self) as runnables:
                async with _beside(self._lifecycle.run(runnables)):
                    try:
                        yield self
                    finally:
                        self._lifecycle.stop()

    async def run(self, names: Sequence[str], launch: Launch) -> None:
        """Run the startables `names` for the command line, until a signal arrives or the parent process ends."""
        startables = select(names)
        task, is_open, interrupted = asyncio.current_task(), False, False

        def stop() -> None:
            nonlocal interrupted
            self._lifecycle.stop()
            if task is not None and not is_open and not interrupted:
                interrupted = task.cancel()  # opening may wait for an unavailable queue

        with stop_signals(stop):
            if launch.parent_fd is not None:
                watch_parent(launch.parent_fd, stop, limit=self.grace + CLOSE_TIMEOUT)
            try:
                async with self.opened():
                    is_open = True
                    self._warn_of_sqlite(startables)
                    with built(startables, self, launch) as runnables:
                        names = [each.name for each in startables]
                        if launch.parent_fd is not None:
                            notify_parent(launch.parent_fd)
                        log.info("application started", startables=names, queue=self.settings.mq.driver)
                        await self._lifecycle.run(runnables)
            except asyncio.CancelledError:
                if task is None or not interrupted:
                    raise
                task.uncancel()
            log.info("application stopped")

    def _warn_of_sqlite(self, startables: Sequence[Startable]) -> None:
        # The bug needs two processes that write at the same moment; in one process writers take turns.
        alone = len(startables) == len(STARTABLES) and self.settings.worker.processes == 1
        if not alone and (warning := self.container.infra.db().sqlite_warning()) is not None:
            log.warning("sqlite version outdated", detail=warning)


@asynccontextmanager
async def open_database(container: Container) -> AsyncIterator[Database]:
    """Open the database for the block, with the tables that this code expects.

    In development on SQLite pending migrations are applied; otherwise they are an error.

    Raises:
        DatabaseError: the database is unavailable, or migrations are pending. The text is one line.
    """
    settings: Settings = container.settings()
    db: Database = container.infra.db()
    await db.open()
    try:
        if not await is_current(db, HISTORIES):
            await _migrate_or_refuse(db, in_development=settings.env == "development")
        yield db
    finally:
        await _bounded("database", db.close)


async def _migrate_or_refuse(db: Database, *, in_development: bool) -> None:
    from infra.db.migrate import require_current, upgrade  # Alembic, which few processes need

    if in_development and db.dialect.name == "sqlite":
        for migration in await upgrade(db, HISTORIES):
            log.info("migration applied", migration=migration)
    else:
        await require_current(db, HISTORIES)


@asynccontextmanager
async def open_queue(container: Container, *, or_later: bool = False) -> AsyncIterator[MessageQueue]:
    """Open the database and the queue for the block; with `or_later` the bus opens an unavailable queue later.

    Raises:
        DatabaseError, QueueError: one of them cannot be opened. The text is one line.
    """
    async with open_database(container):
        mq: MessageQueue = container.infra.mq()
        try:
            await mq.open()
        except QueueUnavailable:
            if not or_later:
                raise
        try:
            yield mq
        finally:
            await _bounded("queue", mq.close)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` concurrently with the block; its error cancels the block and is raised instead."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(work)
            yield
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__


async def _bounded(name: str, close: Callable[[], Awaitable[None]]) -> None:
    # A part that hangs while it closes must not keep the other parts open or the process alive.
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await close()
    except TimeoutError:
        log.warning("close timed out", part=name, seconds=CLOSE_TIMEOUT)
