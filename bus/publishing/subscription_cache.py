"""What a publisher knows of the queue's registry."""

import asyncio

from infra.clock import Clock
from infra.mq import REGISTRY_TTL, MessageQueue, QueueUnavailable, Registry


class SubscriptionCache:
    """This process's copy of who subscribed to what, to skip the queue where nobody did."""

    def __init__(self, mq: MessageQueue, clock: Clock) -> None:
        self._mq = mq
        self._clock = clock
        self.complete = False
        """Whether the queue knows this process's own listeners: a copy from before may lack them, and counts as old."""

        self._registry = Registry()
        self._fresh_until = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def fresh(self) -> bool:
        """Whether the copy was confirmed recently enough to be trusted."""
        return self._clock.monotonic() < self._fresh_until

    def routed(self, name: str) -> bool:
        """Whether somebody may have a durable subscription to that event: all are taken to have, until it is known."""
        return name in self._registry.routed or not self.fresh

    def broadcast(self, name: str) -> bool:
        """Whether the copy knows a process that listens to broadcasts of that event."""
        return name in self._registry.broadcast

    def may_broadcast(self, name: str) -> bool:
        """Whether some process may listen to broadcasts of that event: all are taken to have one, until it is known."""
        return name in self._registry.broadcast or not self.fresh

    def unwanted(self, name: str) -> bool:
        """Whether nobody subscribed to that event in any way, as a fresh copy says."""
        registry = self._registry
        return (
            name not in registry.routed
            and name not in registry.broadcast
            and self._clock.monotonic() < self._fresh_until
        )

    def knows(self, name: str) -> bool:
        """Whether the copy lists that event, or is fresh enough to say that nobody wants it."""
        return name in self._registry.routed or name in self._registry.broadcast or self.fresh

    def refresh_soon(self) -> None:
        """Begin to confirm or renew the copy, for the publishes to come."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh(), name="bus registry")
            self._refreshing.add_done_callback(self._refreshed)

    async def refresh(self) -> None:
        """Confirm or renew the copy; several callers share one request.

        Raises:
            QueueError: the queue did not answer.
        """
        self.refresh_soon()
        if (refreshing := self._refreshing) is None:
            return
        await asyncio.wait((refreshing,))
        if refreshing.cancelled():  # not by this caller, who is not cancelled himself
            raise QueueUnavailable("the request for the registry was cancelled")
        refreshing.result()

    async def _refresh(self) -> None:
        asked, complete = self._clock.monotonic(), self.complete
        self._registry = await self._mq.registry()
        if complete:
            self._fresh_until = asked + REGISTRY_TTL

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # its awaiters raise it, and the registration task asks again
