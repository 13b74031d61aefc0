"""The restart of a child process when a source file changes."""

import asyncio
import os
from pathlib import Path

from beneath.runtime.reload import Reloader, difference, snapshot, source_roots
from infra.clock import FakeClock
from tests.cli.test_processes import FakeSpawner


def change(path: Path, nanoseconds: int) -> None:
    path.write_text("changed")
    os.utime(path, ns=(nanoseconds, nanoseconds))


async def test_a_change_stops_the_child_and_starts_another(tmp_path: Path) -> None:
    clock, spawner, source = FakeClock(), FakeSpawner(), tmp_path / "service.py"
    change(source, 1)
    running = asyncio.create_task(Reloader((), roots=[tmp_path], spawn=spawner.spawn, clock=clock).run())
    await clock.advance(3)
    assert len(spawner.children) == 1
    change(source, 2)
    await clock.advance(0.6)
    first, second = spawner.children
    assert first.asked
    assert not second.asked
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert second.asked


async def test_a_child_that_fails_waits_for_the_next_change(tmp_path: Path) -> None:
    clock, spawner, source = FakeClock(), FakeSpawner(), tmp_path / "service.py"
    change(source, 1)
    running = asyncio.create_task(Reloader((), roots=[tmp_path], spawn=spawner.spawn, clock=clock).run())
    await clock.settle()
    spawner.children[0].end(1)
    await clock.advance(60)
    assert len(spawner.children) == 1
    change(source, 2)
    await clock.advance(0.6)
    assert len(spawner.children) == 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_added_removed_and_changed_files_are_detected(tmp_path: Path) -> None:
    source, other = tmp_path / "a.py", tmp_path / "b.txt"
    change(source, 1)
    before = snapshot([tmp_path])
    change(other, 1)
    assert difference(before, snapshot([tmp_path])) == ""
    change(source, 2)
    assert difference(before, snapshot([tmp_path])) == "a.py"
    source.unlink()
    assert difference(before, snapshot([tmp_path])) == "a.py"
    change(tmp_path / "c.yaml", 1)
    assert difference({}, snapshot([tmp_path])) == "c.yaml"


def test_every_package_of_the_project_is_watched() -> None:
    names = {path.name for path in source_roots()}
    assert names >= {"bus", "models", "services", "infra", "dependencies", "beneath", "config"}
