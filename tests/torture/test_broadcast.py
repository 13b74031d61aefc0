"""Broadcasts between processes, and the gaps in them."""

import sqlite3
import time
from contextlib import closing

import pytest

from tests.e2e.processes import Process, until
from tests.torture.events import Chime
from tests.torture.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SILENCE = 0.5
"""After how many seconds a gap is reported in these tests."""


@pytest.fixture
def listening(fleet: Fleet) -> list[Process]:
    return [fleet.start("chime", work=work, longest_silence=SILENCE) for work in (True, False)]


def wait_until_heard(fleet: Fleet, process: Process, text: str, times: int = 1) -> None:
    def heard() -> bool:
        assert process.running, process.stderr
        lines = fleet.journal.of("note", "chime")
        return sum((each.pid, each.text) == (process.pid, text) for each in lines) >= times

    until(heard, f"{process} hears {text or 'what is broadcast'!r}")


def test_a_broadcast_reaches_a_worker_and_a_process_that_is_none(fleet: Fleet, listening: list[Process]) -> None:
    for process in listening:
        fleet.wait_ready(process)
    for n in range(3):
        fleet.publish([Chime(key="a", n=n)])
    for process in listening:
        wait_until_heard(fleet, process, "", times=3)
    fleet.stop(*listening)
    assert sorted(each.n for each in fleet.journal.of("note")) == [0, 0, 1, 1, 2, 2]


def test_on_gap_runs_after_the_database_was_locked_away(fleet: Fleet, listening: list[Process]) -> None:
    for process in listening:
        fleet.wait_ready(process)
    with closing(sqlite3.connect(fleet.database, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        locked_at = time.monotonic()
        until(lambda: time.monotonic() - locked_at > 4 * SILENCE, "the lock is held for long")
        db.execute("ROLLBACK")
    assert_gap_and_then_reception(fleet, listening)


def test_on_gap_runs_after_the_database_was_moved_away(fleet: Fleet, listening: list[Process]) -> None:
    for process in listening:
        fleet.wait_ready(process)
    away = fleet.database.with_suffix(".away")
    fleet.database.rename(away)
    moved_at = time.monotonic()
    until(lambda: time.monotonic() - moved_at > 2 * SILENCE, "it is away for long")
    away.rename(fleet.database)
    assert_gap_and_then_reception(fleet, listening)


def assert_gap_and_then_reception(fleet: Fleet, listening: list[Process]) -> None:
    for process in listening:
        wait_until_heard(fleet, process, "gap")
    fleet.publish([Chime(key="a", n=1)])
    for process in listening:
        wait_until_heard(fleet, process, "")
    fleet.stop(*listening)
