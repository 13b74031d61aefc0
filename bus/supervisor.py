"""The supervisor of the bus's background tasks: relay, settler, broadcasts, recovery and all others."""

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
"""Failures that pass once a server, a disk or a network is back, so that no process ends because of them.

Database errors that `infra.db` does not map are among them: an unknown one is retried, visibly, and not final.
"""


def bus_supervisor(clock: Clock) -> Supervisor:
    """Return the supervisor of one bus, with no tasks yet."""
    return Supervisor(clock, transient=TRANSIENT)
