"""`beneath start --reload`: runs the application as a child process, and restarts it when a source file changes."""

import asyncio
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from beneath.runtime.processes import SPAWN_ERRORS, Child, Spawn, reason, spawn_beneath, stop_child
from dependencies.sources import FOLDER
from infra.clock import Clock, SystemClock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PACKAGES = ("bus", "models", "services", "infra", "dependencies", "beneath")
SUFFIXES = frozenset({".py", ".yaml"})
RETRY = 1.0
"""Seconds before the next try if the child process could not be created."""


class Reloader:
    """A runnable that runs `beneath` with `arguments`, and restarts it whenever a watched file changes."""

    name = "reload"
    grace = 10.0
    """Seconds that the application has to end before it is killed: short, because a developer waits for the restart."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        config: Path | None = None,
        roots: Sequence[Path] | None = None,
        every: float = 0.5,
        spawn: Spawn = spawn_beneath,
        clock: Clock | None = None,
    ) -> None:
        """Check the files under `roots`, by default the project's packages and settings, every `every` seconds."""
        self._arguments = arguments
        self._roots = [*(roots if roots is not None else source_roots()), *([config] if config else [])]
        self._every = every
        self._spawn = spawn
        self._clock = clock or SystemClock()

    async def run(self) -> None:
        while True:
            before = snapshot(self._roots)
            try:
                child = await self._spawn(self._arguments)
            except SPAWN_ERRORS as error:
                log.warning("process not started", error=reason(error), retry_in=RETRY)
                await self._clock.sleep(RETRY)
                continue
            ended = asyncio.ensure_future(child.wait())
            try:
                changed = await self._change(before, ended)
            finally:
                await self._stop(child, ended)
            log.info("process restarting", changed=changed)

    async def _change(self, before: Mapping[Path, int], ended: asyncio.Future[int]) -> str:
        is_logged = False
        while True:
            await self._clock.sleep(self._every)
            if ended.done() and not is_logged:
                log.warning("process ended", code=ended.result())
                is_logged = True
            if changed := difference(before, snapshot(self._roots)):
                return changed

    async def _stop(self, child: Child, ended: asyncio.Future[int]) -> None:
        if not ended.done():
            await stop_child(child, ended, grace=self.grace, clock=self._clock)


def source_roots() -> list[Path]:
    """Return the folders of the project's packages and settings."""
    return [Path(path) for name in PACKAGES for path in importlib.import_module(name).__path__] + [Path(FOLDER)]


def snapshot(roots: Sequence[Path]) -> dict[Path, int]:
    """Return the modification time of each watched file, in nanoseconds."""
    return dict(_times(roots))


def difference(before: Mapping[Path, int], after: Mapping[Path, int]) -> str:
    """Return the name of one file that was added, removed or changed; "" if there is none."""
    return next((path.name for path in {**before, **after} if before.get(path) != after.get(path)), "")


def _times(roots: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    for root in roots:
        for path in [root] if root.is_file() else root.rglob("*"):
            if path.suffix in SUFFIXES:
                try:
                    yield path, path.stat().st_mtime_ns
                except FileNotFoundError:
                    continue  # an editor replaces files, so one may vanish after it was listed
