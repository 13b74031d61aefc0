"""Broadcasts between processes, and gaps."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.processes import let_pass, until
from tests.torture.events import Chime
from tests.torture.fleet import Fleet
from tests.torture.forked import ForkedProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SILENCE = 0.5
"""Seconds without a poll of SQLite after which a gap is reported in these tests."""


def listen(fleet: Fleet, **queue: float) -> list[ForkedProcess]:
    """Start a worker, and a process that only listens to broadcasts."""
    processes = [fleet.start("chime", work=work, queue=queue) for work in (True, False)]
    for each in processes:
        fleet.wait_ready(each)
    return processes


def test_a_broadcast_reaches_every_process_and_leaves_no_gap(fleet: Fleet) -> None:
    listening = listen(fleet)
    for n in range(3):
        fleet.publish([Chime(key="a", n=n)])
    wait_until_heard(fleet, listening, "", times=3)
    fleet.stop(*listening)
    assert [each for each in fleet.journal.of("note") if each.text == "gap"] == []
    assert sorted(each.n for each in fleet.journal.of("note") if not each.text) == [0, 0, 1, 1, 2, 2]


@pytest.mark.embedded
def test_on_gap_runs_after_the_database_was_locked(fleet: Fleet) -> None:
    listening = listen(fleet, longest_silence=SILENCE)
    with closing(sqlite3.connect(database(fleet), isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        let_pass(2 * SILENCE)
        db.execute("ROLLBACK")
    wait_until_heard(fleet, listening, "gap")
    fleet.publish([Chime(key="a", n=1)])
    wait_until_heard(fleet, listening, "")
    fleet.stop(*listening)


@pytest.mark.embedded
def test_on_gap_runs_after_the_database_was_unreachable(fleet: Fleet) -> None:
    listening = listen(fleet, longest_silence=SILENCE)
    file = database(fleet)
    away = file.with_suffix(".away")
    file.rename(away)
    let_pass(2 * SILENCE)
    away.rename(file)
    wait_until_heard(fleet, listening, "gap")
    fleet.publish([Chime(key="a", n=1)])
    wait_until_heard(fleet, listening, "")
    fleet.stop(*listening)


@pytest.mark.postgres("queue")
def test_on_gap_runs_after_the_notification_connection_was_lost(fleet: Fleet) -> None:
    listening = listen(fleet)
    fleet.rows.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    wait_until_heard(fleet, listening, "gap")
    fleet.publish([Chime(key="a", n=1)])
    wait_until_heard(fleet, listening, "")
    fleet.stop(*listening)


def database(fleet: Fleet) -> Path:
    assert fleet.place.db_url is not None
    return Path(fleet.place.db_url.removeprefix("sqlite:///"))


def wait_until_heard(fleet: Fleet, listening: list[ForkedProcess], text: str, times: int = 1) -> None:
    def heard() -> bool:
        assert all(each.running for each in listening)
        lines = fleet.journal.of("note", "chime")
        return all(sum((it.process, it.text) == (each.number, text) for it in lines) >= times for each in listening)

    until(heard, f"both hear {text or 'what is broadcast'!r}")
