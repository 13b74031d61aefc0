"""The supervisor of the bus's background tasks, such as relay, settler, broadcasts and recovery."""

from bus.store_errors import STORE_ERRORS
from infra.clock import Clock
from infra.supervision import BackgroundTaskFailed, SupervisedTask, Supervisor, TaskState, ends_task

__all__ = [
    "TRANSIENT",
    "BackgroundTaskFailed",
    "SupervisedTask",
    "Supervisor",
    "TaskState",
    "bus_supervisor",
    "ends_task",
]

TRANSIENT = (*STORE_ERRORS, OSError)
"""Errors that end when a server, disk or network is available again; they never end a process.

They include database errors that `infra.db` does not map: an unknown error is logged and retried.
"""


def bus_supervisor(clock: Clock) -> Supervisor:
    """Return the supervisor of one bus, with no tasks yet."""
    return Supervisor(clock, transient=TRANSIENT)
