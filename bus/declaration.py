"""How a process makes itself known to the queue, and stays known as long as it lives."""

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
"""Seconds between two declarations: how long what the queue lost may be missing."""


class Declaration:
    """Declares this process's listeners, and starts what depends on that: broadcasts, and the relay of the outbox.

    It declares them again and again, as long as the process lives: a durable queue may lose them, by FLUSHALL, a lost
    tail of its log or a failover, and then the process with the listener must declare it again.
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
        """Set once the queue knows this process's listeners."""

        self._mq = mq
        self._clock = clock
        self._listeners = listeners
        self._publisher = publisher
        self._broadcasts = broadcasts
        self._supervisor = supervisor
        self._task: SupervisedTask | None = None

    async def start(self, timeout: float) -> None:
        """Enrol within `timeout` seconds or, where an outbox holds what is published meanwhile, as soon as possible.

        Raises:
            BusError: the queue cannot be used, or what it keeps contradicts the code.
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
            self._task = self._supervisor.start("registration", self._stay_known)

    async def close(self) -> None:
        """Stop what was started."""
        if self._task is not None:
            await self._task.stop()
        if self._publisher.dispatch.relay is not None:
            await self._publisher.dispatch.relay.close()
        await self._broadcasts.close()

    async def _declare_all(self) -> None:
        await self._declare()
        await self._broadcasts.start()
        # Not before: what was sent ahead of the subscriptions would pass them by.
        if self._publisher.dispatch.relay is not None:
            self._publisher.dispatch.relay.start()
        self.done.set()

    async def _declare(self) -> None:
        subscriptions = [
            Subscription(
                name=each.name, events=each.events, ordered=each.kind is ListenerKind.ORDERED, aliases=each.aliases
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
        if self._publisher.dispatch.relay is None:
            raise BusError(reason) from error
        log.warning("queue connection postponed", error=reason)

    async def _stay_known(self) -> None:
        if not self.done.is_set():
            await self._declare_late()
        while True:
            await self._clock.sleep(REDECLARE_EVERY)
            await self._declare()
            if self._task is not None:
                self._task.succeeded()

    async def _declare_late(self) -> None:
        said = ""
        while True:
            await self._clock.sleep(RETRY_EVERY)
            try:
                await self._mq.open()
                await self._declare_all()
            except (QueueUnavailable, QueueClosed, QueueIndeterminate) as error:
                log.debug("queue connection failed", error=str(error))
            except QueueError as error:
                if said != (said := str(error)):
                    log.error("queue connection rejected", error=said)  # noqa: TRY400 - one line, for people
            else:
                log.info("queue connected")
                return
