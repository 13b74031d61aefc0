"""A slot: one place of a worker to run a listener's handler in."""

import asyncio
from collections.abc import Callable

from bus.listeners import Listener
from infra.mq import Claim

FOREVER = float("inf")


class Slot:
    """What runs in one place, and what was asked of it: a task that takes one claim after another."""

    __slots__ = (
        "claim",
        "committed",
        "complained",
        "deadline",
        "exit",
        "in_thread",
        "is_worker_ending",
        "listener",
        "started",
        "stopping",
        "task",
        "timed_out",
    )

    def __init__(self, listener: Listener, is_worker_ending: Callable[[], bool] = lambda: False) -> None:
        self.listener = listener
        self.is_worker_ending = is_worker_ending
        self.task: asyncio.Task[None] | None = None
        """The slot's task; None in a test kit, whose own task runs the handlers."""

        self.claim: Claim | None = None
        """The claim that the slot holds unsettled."""

        self.exit: BaseException | None = None
        """The SystemExit or KeyboardInterrupt that a handler raised: the process is to end with it."""

        self.started = 0.0
        self.deadline = FOREVER
        self.timed_out = False
        self.stopping = False
        self.complained = False
        self.in_thread = False
        self.committed = False
        """Whether the transaction of a `once` handler has committed: whatever follows, the delivery is done."""

    def begin(self, started: float) -> None:
        """Begin an attempt at the monotonic time `started`."""
        self.started = started
        self.timed_out = self.complained = self.committed = False
        timeout = self.listener.timeout
        self.deadline = FOREVER if timeout is None else started + timeout

    def interrupt(self) -> None:
        """Cancel the handler that runs here because its time is up."""
        self.timed_out = True
        self.deadline = FOREVER
        if self.task is not None:
            self.task.cancel()

    @property
    def is_stopping(self) -> bool:
        """Whether the worker ends the handler: it stops, has no lease, or every task of the loop was cancelled."""
        return self.stopping or self.is_worker_ending()
