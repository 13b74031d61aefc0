"""Replacements for the worker's threads, which run in the event loop: the heartbeat, and plain `def` handlers."""

import asyncio
from collections.abc import Callable, Collection
from types import FrameType

from bus.listeners import Listener
from bus.metrics import BusMetrics
from bus.options import BusOptions
from bus.worker import threads
from bus.worker.slot import Slot
from bus.worker.threads import CallResult, ThreadPool
from infra.mq import Consumer
from tests.simulation.loop import PROCESS, SimulatedLoop


class NumberedSlot(Slot):
    """A slot that is hashed by its creation number, so that the order of sets does not depend on addresses."""

    __slots__ = ("number",)

    def __init__(
        self,
        listener: Listener,
        is_worker_ending: Callable[[], bool] = lambda: False,
        listener_slots: Collection[Slot] = (),
    ) -> None:
        super().__init__(listener, is_worker_ending, listener_slots)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        self.number = loop.number()

    def __hash__(self) -> int:
        return self.number


class SimulatedHeartbeat:
    """Renews the lease as `bus.heartbeat.Heartbeat` does, from a task that nothing cancels and only freezing stops."""

    def __init__(
        self,
        consumer: Consumer,
        options: BusOptions,
        metrics: BusMetrics,
        describe: Callable[[FrameType], str | None],
        on_loss: Callable[[], object],
    ) -> None:
        self._consumer = consumer
        self._step = options.renew_every
        self._on_loss = on_loss
        self._stopped = False

    def start(self) -> None:
        """Schedule the first renewal."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        loop.call_later(0, self._beat, loop)

    def stop(self) -> None:
        """End the renewals."""
        self._stopped = True

    def _beat(self, loop: SimulatedLoop) -> None:
        if self._stopped:
            return
        try:
            kept = self._consumer.renew()
        except Exception:  # noqa: BLE001 - as in the original: the next renewal may succeed
            kept = True
        if kept:
            loop.call_later(self._step * PROCESS.get().random.uniform(0.5, 1), self._beat, loop)
        else:
            self._on_loss()


class SimulatedThreads(ThreadPool):
    """A thread pool that runs each function once and to its end in the event loop, also if its caller is cancelled."""

    def submit(self, function: Callable[[], object]) -> asyncio.Future[CallResult]:
        """Call `function` after a random delay."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[CallResult] = loop.create_future()
        loop.call_later(PROCESS.get().random.uniform(0, 0.05), lambda: threads._finish(future, threads._run(function)))
        return future

    def close(self) -> None:
        """Do nothing, as there is no thread."""
