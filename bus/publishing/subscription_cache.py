"""The subscription cache: a publisher's copy of the queue's registry."""

import asyncio

from infra.clock import Clock
from infra.mq import REGISTRY_TTL, MessageQueue, QueueUnavailable, Registry


class SubscriptionCache:
    """This process's copy of the queue's registry, to skip the queue for events without subscriptions."""

    def __init__(self, mq: MessageQueue, clock: Clock) -> None:
        self._mq = mq
        self._clock = clock
        self.complete = False
        """Whether this process has declared its listeners; an earlier copy may lack them and is never fresh."""

        self._registry = Registry()
        self._fresh_until = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def fresh(self) -> bool:
        """Whether the copy was read within the last `REGISTRY_TTL` seconds."""
        return self._clock.monotonic() < self._fresh_until

    def routed(self, name: str) -> bool:
        """Whether the event may have a durable subscription; True for every event while the copy is not fresh."""
        return name in self._registry.routed or not self.fresh

    def broadcast(self, name: str) -> bool:
        """Whether the copy, fresh or not, has a broadcast listener of the event."""
        return name in self._registry.broadcast

    def may_broadcast(self, name: str) -> bool:
        """Whether the event may have a broadcast listener; True for every event while the copy is not fresh."""
        return name in self._registry.broadcast or not self.fresh

    def unwanted(self, name: str) -> bool:
        """Whether the event has no subscription and no broadcast listener, by a fresh copy."""
        registry = self._registry
        return (
            name not in registry.routed
            and name not in registry.broadcast
            and self._clock.monotonic() < self._fresh_until
        )

    def knows(self, name: str) -> bool:
        """Whether the copy lists the event, or is fresh, so that the event has no listener."""
        return name in self._registry.routed or name in self._registry.broadcast or self.fresh

    def refresh_soon(self) -> None:
        """Begin to read the registry, for later publishes."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh(), name="bus registry")
            self._refreshing.add_done_callback(self._refreshed)

    async def refresh(self) -> None:
        """Read the registry; concurrent callers share one request.

        Raises:
            QueueError: the registry could not be read.
        """
        self.refresh_soon()
        if (refreshing := self._refreshing) is None:
            return
        await asyncio.wait((refreshing,))
        if refreshing.cancelled():  # by its own task's cancellation, not by the caller's
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
            task.exception()  # `refresh` raises it in its callers; the declaration task tries again
