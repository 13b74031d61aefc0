"""The declaration of a process's listeners in the queue, at the start and periodically."""

import asyncio

import structlog

from bus.broadcasts import Broadcasts
from bus.errors import BusError
from bus.listener_table import ListenerTable
from bus.listeners import ListenerKind
from bus.publishing.publisher import Publisher
from bus.supervisor import SupervisedTask, Supervisor
from infra.clock import Clock
from infra.mq import MessageQueue, QueueClosed, QueueError, QueueIndeterminate, QueueUnavailable, Subscription

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

RETRY_EVERY = 1.0
"""Seconds between two attempts to reach a queue that was unavailable at the start."""

REDECLARE_EVERY = 2.0
"""Seconds between two declarations, and so the longest time for which lost subscriptions are missing."""


class Declaration:
    """Declares this process's listeners, then starts the broadcasts and the relay, which depend on that.

    The declaration is repeated as long as the process runs: a durable queue can lose subscriptions (by FLUSHALL, a lost
    end of its log, or a failover), and only a process that has the listener can declare it again.
    """

    def __init__(
        self,
        mq: MessageQueue,
        clock: Clock,
        listeners: ListenerTable,
        publisher: Publisher,
        broadcasts: Broadcasts,
        supervisor: Supervisor,
    ) -> None:
        self.done = asyncio.Event()
        """Set once the queue has this process's subscriptions."""

        self._mq = mq
        self._clock = clock
        self._listeners = listeners
        self._publisher = publisher
        self._broadcasts = broadcasts
        self._supervisor = supervisor
        self._task: SupervisedTask | None = None

    async def start(self, timeout: float) -> None:
        """Declare the listeners within `timeout` seconds; with an outbox, go on in the background if that fails.

        Raises:
            BusError: the queue is unavailable and there is no outbox, or its subscriptions contradict the code.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._declare_all()
        except TimeoutError as error:
            self._postpone(f"the queue did not answer within {timeout:g} s", error)
        except (QueueUnavailable, QueueClosed) as error:
            self._postpone(str(error), error)
        except QueueError as error:
            raise BusError(str(error)) from error
        if self._mq.features.durable:
            self._task = self._supervisor.start("registration", self._redeclare)

    async def close(self) -> None:
        """Stop declaring, the relay and the broadcasts."""
        if self._task is not None:
            await self._task.stop()
        if self._publisher.relay is not None:
            await self._publisher.relay.close()
        await self._broadcasts.close()

    async def _declare_all(self) -> None:
        await self._declare()
        await self._broadcasts.start()
        # The relay starts last: messages that it sent before the declaration would miss these listeners.
        if self._publisher.relay is not None:
            self._publisher.relay.start()
        self.done.set()

    async def _declare(self) -> None:
        subscriptions = [
            Subscription(
                name=each.name,
                events=each.events,
                ordered=each.kind is ListenerKind.ORDERED,
                aliases=each.options.aliases,
            )
            for each in self._listeners.listeners
            if each.durable
        ]
        broadcasts = {
            name for each in self._listeners.listeners if each.kind is ListenerKind.BROADCAST for name in each.events
        }
        await self._mq.declare(subscriptions, broadcasts)
        self._publisher.dispatch.learn_limits()
        self._publisher.subscriptions.complete = True
        await self._publisher.subscriptions.refresh()

    def _postpone(self, reason: str, error: Exception) -> None:
        if self._publisher.relay is None:
            raise BusError(reason) from error
        log.warning("queue connection postponed", error=reason)

    async def _redeclare(self) -> None:
        if not self.done.is_set():
            await self._declare_when_available()
        while True:
            await self._clock.sleep(REDECLARE_EVERY)
            await self._declare()
            if self._task is not None:
                self._task.succeeded()

    async def _declare_when_available(self) -> None:
        rejection = ""
        while True:
            await self._clock.sleep(RETRY_EVERY)
            try:
                await self._mq.open()
                await self._declare_all()
            except (QueueUnavailable, QueueClosed, QueueIndeterminate) as error:
                log.debug("queue connection failed", error=str(error))
            except QueueError as error:
                if rejection != (rejection := str(error)):
                    log.error("queue connection rejected", error=rejection)  # noqa: TRY400 - one line without a traceback
            else:
                log.info("queue connected")
                return
