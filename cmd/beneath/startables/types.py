"""The types of startables: what a startable is, and the arguments from which it builds its runnables."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from beneath.runtime.lifecycle import Runnable
from bus import Bus
from dependencies import AllServices, Container, Settings


class OpenedApplication(Protocol):
    """The opened application, as startables use it."""

    container: Container
    settings: Settings
    urls: dict[str, str]
    """The HTTP URL of each running startable that has one, by name."""

    @property
    def services(self) -> AllServices:
        """All services."""
        ...

    @property
    def bus(self) -> Bus:
        """The bus."""
        ...

    @property
    def grace(self) -> float:
        """Seconds that the runnables get at shutdown."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether a shutdown was requested."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The command line that started this process."""

    options: Sequence[str] = ()
    """Arguments that give a child process the same settings."""

    parent_fd: int | None = None
    """File descriptor of the socket to the parent process; None if this is not a child."""


@dataclass(frozen=True, slots=True)
class BuildContext:
    """The arguments from which a startable builds its runnables."""

    application: OpenedApplication
    cleanup: ExitStack
    """Closed when all runnables have ended, or if building one of them failed."""

    started: Collection[str]
    """Names of all startables that start in this process."""

    launch: Launch | None
    """None if not started from the command line; then no child processes are started."""


@dataclass(frozen=True, slots=True)
class Startable:
    """A named set of runnables."""

    name: str
    summary: str
    build: Callable[[BuildContext], Sequence[Runnable]]
