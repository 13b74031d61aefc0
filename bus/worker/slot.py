"""A slot: one place of a worker to run a listener's handler in."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from bus.delivery import Delivery, current_delivery
from bus.listeners import Listener
from infra.mq import Claim

FOREVER = float("inf")


class SlotTask(asyncio.Task[None]):
    """The task of a slot, in which one delivery is handled after another.

    A handler may have left something behind that cancels its task later: a timer, a task that watches it. Once its
    attempt is over, that reaches nothing: the cancellation would be another delivery's.
    """

    def __init__(self, slot: "Slot", work: Coroutine[Any, Any, None]) -> None:
        self._slot = slot
        super().__init__(work, loop=asyncio.get_running_loop())

    def cancel(self, msg: object = None) -> bool:
        """Cancel what runs here, if the caller can mean that; the worker itself calls `interrupt`."""
        return self._slot.takes_cancellation(current_delivery()) and super().cancel(msg)

    def interrupt(self) -> None:
        """Cancel what runs here on the worker's behalf."""
        super().cancel()


class Slot:
    """What runs in one place, and what was asked of it: a task that takes one claim after another."""

    __slots__ = (
        "claim",
        "committed",
        "complained",
        "deadline",
        "delivery",
        "disturbed",
        "exit",
        "in_thread",
        "is_worker_ending",
        "listener",
        "neighbours",
        "started",
        "stopping",
        "task",
        "timed_out",
    )

    def __init__(
        self,
        listener: Listener,
        is_worker_ending: Callable[[], bool] = lambda: False,
        neighbours: "Collection[Slot]" = (),
    ) -> None:
        self.listener = listener
        self.is_worker_ending = is_worker_ending
        self.neighbours = neighbours
        """Every slot of the listener, this one included."""

        self.task: SlotTask | None = None
        """The slot's task; None in a test kit, whose own task runs the handlers."""

        self.claim: Claim | None = None
        """The claim that the slot holds unsettled."""

        self.delivery: Delivery | None = None
        """What the handler that runs here knows of its delivery; None between two attempts."""

        self.exit: BaseException | None = None
        """The SystemExit or KeyboardInterrupt that a handler raised: the process is to end with it."""

        self.started = 0.0
        self.deadline = FOREVER
        self.timed_out = False
        self.stopping = False
        self.complained = False
        self.in_thread = False
        self.disturbed = False
        """Whether the handling of another delivery asked for a cancellation of this one."""

        self.committed = False
        """Whether the transaction of a `once` handler has committed: whatever follows, the delivery is done."""

    def begin(self, started: float) -> None:
        """Begin an attempt at the monotonic time `started`."""
        self.started = started
        self.timed_out = self.complained = self.committed = self.disturbed = False
        timeout = self.listener.timeout
        self.deadline = FOREVER if timeout is None else started + timeout

    def interrupt(self) -> None:
        """Cancel the handler that runs here because its time is up."""
        self.timed_out = True
        self.deadline = FOREVER
        if self.task is not None:
            self.task.interrupt()

    def stop(self) -> None:
        """Cancel the handler that runs here because the worker ends it."""
        self.stopping = True
        if self.task is not None:
            self.task.interrupt()

    def takes_cancellation(self, delivery: Delivery | None) -> bool:
        """Whether a cancellation that is asked for in the handling of `delivery` (None: elsewhere) is for what runs."""
        if delivery is None or delivery is self.delivery:
            return True
        if self.delivery is None or self._has_ended(delivery):
            return False
        self.disturbed = True
        return True

    def _has_ended(self, delivery: Delivery) -> bool:
        """Whether the attempt at `delivery` may have run here before."""
        return delivery.listener == self.listener.name and all(it.delivery is not delivery for it in self.neighbours)

    @property
    def is_stopping(self) -> bool:
        """Whether the worker ends the handler: it stops, has no lease, or every task of the loop was cancelled."""
        return self.stopping or self.is_worker_ending()
