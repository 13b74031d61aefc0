"""The slot of a worker: a place in which one handler runs at a time."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from bus.delivery import Delivery, current_delivery
from bus.listeners import Listener
from infra.mq import Claim

FOREVER = float("inf")


def _do_nothing() -> None:
    pass


class SlotTask(asyncio.Task[None]):
    """The task of a slot; handles one delivery after another.

    A handler may leave behind a timer or task that cancels this task later. Such a cancellation is ignored once the
    handler's attempt has ended, because it would reach another delivery.
    """

    def __init__(self, slot: "Slot", work: Coroutine[Any, Any, None]) -> None:
        self._slot = slot
        super().__init__(work, loop=asyncio.get_running_loop())

    def cancel(self, msg: object = None) -> bool:
        """Cancel the running handler, unless the caller belongs to an attempt that has ended; see `interrupt`."""
        return self._slot.accept_cancellation(current_delivery()) and super().cancel(msg)

    def interrupt(self) -> None:
        """Cancel the running handler; the worker calls this for timeouts and shutdown."""
        super().cancel()


class Slot:
    """The state of one slot: its task, its claim, and the attempt that runs."""

    __slots__ = (
        "cancelled_by_other",
        "claim",
        "committed",
        "deadline",
        "delivery",
        "exit",
        "in_thread",
        "is_worker_ending",
        "listener",
        "listener_slots",
        "on_waiting",
        "started",
        "stopping",
        "task",
        "timed_out",
        "timeout_logged",
    )

    def __init__(
        self,
        listener: Listener,
        is_worker_ending: Callable[[], bool] = lambda: False,
        listener_slots: "Collection[Slot]" = (),
    ) -> None:
        self.listener = listener
        self.is_worker_ending = is_worker_ending
        self.listener_slots = listener_slots
        """All slots of the listener, including this one."""

        self.on_waiting: Callable[[], object] = _do_nothing
        """Called when the slot has to wait within an attempt, so that other slots are needed for the waiting claims."""

        self.task: SlotTask | None = None
        """The slot's task; None in a test kit, whose own task runs the handlers."""

        self.claim: Claim | None = None
        """The claim whose deliveries the slot runs; None once the claim is settled."""

        self.delivery: Delivery | None = None
        """The delivery that the running handler received; None between two attempts."""

        self.exit: BaseException | None = None
        """The SystemExit or KeyboardInterrupt of a handler, with which the process is to end."""

        self.started = 0.0
        self.deadline = FOREVER
        self.timed_out = False
        self.stopping = False
        self.timeout_logged = False
        self.in_thread = False
        self.cancelled_by_other = False
        """Whether the handler of another delivery cancelled this one's handler."""

        self.committed = False
        """Whether the transaction of a `once` handler has committed: an error after that changes nothing."""

    def begin(self, started: float) -> None:
        """Begin an attempt at the monotonic time `started`."""
        self.started = started
        self.timed_out = self.timeout_logged = self.committed = self.cancelled_by_other = False
        timeout = self.listener.options.timeout
        self.deadline = FOREVER if timeout is None else started + timeout

    def interrupt(self) -> None:
        """Cancel the running handler because its deadline has passed."""
        self.timed_out = True
        self.deadline = FOREVER
        if self.task is not None:
            self.task.interrupt()

    def stop(self) -> None:
        """Cancel the running handler because the worker shuts down or has no lease."""
        self.stopping = True
        if self.task is not None:
            self.task.interrupt()

    def accept_cancellation(self, delivery: Delivery | None) -> bool:
        """Return whether to cancel the running handler, as requested by the handler of `delivery`.

        With None the request comes from outside of handlers.
        """
        if delivery is None or delivery is self.delivery:
            return True
        if self.delivery is None or self._has_ended(delivery):
            return False
        self.cancelled_by_other = True
        return True

    def _has_ended(self, delivery: Delivery) -> bool:
        """Whether the attempt at `delivery` has ended, perhaps in this slot."""
        return delivery.listener == self.listener.name and all(
            it.delivery is not delivery for it in self.listener_slots
        )

    @property
    def is_stopping(self) -> bool:
        """Whether the worker ends the handler: at shutdown, without a lease, or with all tasks of the loop."""
        return self.stopping or self.is_worker_ending()
