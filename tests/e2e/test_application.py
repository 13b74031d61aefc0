"""The application as processes: effects of requests, gaps, restarts and shutdown."""

import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.e2e.application import SERVER, WORKER, Caller, Installation, Running
from tests.e2e.processes import Processes, let_pass, until
from tests.stacks import chosen

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

LOCKED = 5.5
"""Seconds for which the database is locked; the queue reports a gap after 5 seconds."""


def assert_sign_up_is_whole(installation: Installation, ada: Caller, email: str) -> None:
    """Check that all effects of a sign-up exist."""
    [organization] = ada.items("/v1/organizations")
    [project] = ada.items(f"/v1/organizations/{organization['id']}/projects")
    assert project["organization_id"] == organization["id"]

    [mail] = until(lambda: installation.mails_to(email), "the welcome mail is there")
    assert "Subject: Welcome" in mail
    journal = f"/v1/organizations/{organization['id']}/audit"
    entries = until(lambda: len(it := ada.items(journal)) >= 2 and it, "the journal is written")
    assert entries
    assert [(each["sequence"], each["event"]) for each in entries] == [
        (1, "OrganizationCreated"),
        (2, "ProjectCreated"),
    ]


def test_single_process_carries_out_all_effects_of_a_sign_up(
    installation: Installation,
) -> None:
    asked_at = time.time()
    running = installation.start("all")
    print(f"ready {time.time() - asked_at:.2f} s after the start")  # noqa: T201
    ada = running.sign_up("ada@example.com")
    assert_sign_up_is_whole(installation, ada, "ada@example.com")

    until(lambda: running.metrics()['beneath_listener_handled_total{listener="audit.record"}'] == 2, "it is counted")
    asked_at = time.time()
    running.stop()
    print(f"stopped {time.time() - asked_at:.2f} s after SIGTERM")  # noqa: T201
    assert running.logs[-1]["event"] == "application stopped"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, Running, Running]]:
    """Start a server and a worker as two processes at the same time."""
    folder = tmp_path_factory.mktemp("pair")
    with chosen().place(folder) as place, Processes() as processes:
        installation = Installation(processes, folder, place)
        server, worker = (Running(installation.spawn("start", name)) for name in (SERVER, WORKER))
        server.wait_ready()
        worker.wait_ready()
        yield installation, server, worker
        worker.stop()
        server.stop()


def test_server_and_worker_processes_carry_out_all_effects_of_a_sign_up(
    pair: tuple[Installation, Running, Running],
) -> None:
    installation, server, worker = pair
    ada = server.sign_up("ada@example.com")
    assert_sign_up_is_whole(installation, ada, "ada@example.com")

    handled = 'beneath_listener_handled_total{listener="notification.send_welcome_email"}'
    until(lambda: worker.metrics()[handled] == 1, "the worker counts what it did")
    assert server.metric("beneath_bus_published_total") >= 3
    assert handled not in server.metrics()


def test_a_broadcast_reaches_server_and_worker_and_leaves_no_gap(
    pair: tuple[Installation, Running, Running],
) -> None:
    installation, server, worker = pair
    received, gaps = "beneath_bus_broadcasts_received_total", "beneath_bus_broadcast_gaps_total"
    bob = server.sign_up("bob@example.com")

    assert bob.request("PATCH", "/v1/me", {"name": "Robert"}).status_code == 200
    until(lambda: worker.metric(received) == 1, "the worker hears the server")
    fields = {"user_id": bob.request("GET", "/v1/me").json()["id"], "email": "bob@example.com", "name": "Bob"}
    installation.run("bus", "publish", "UserUpdated", json.dumps(fields))
    until(lambda: server.metric(received) == 1, "the server hears a command")
    until(lambda: worker.metric(received) == 2, "so does the worker")
    assert (server.metric(gaps), worker.metric(gaps)) == (0, 0)


@pytest.mark.embedded
def test_server_and_worker_report_a_gap_after_a_locked_database(
    pair: tuple[Installation, Running, Running],
) -> None:
    installation, server, worker = pair
    gaps = "beneath_bus_broadcast_gaps_total"
    with closing(sqlite3.connect(installation.folder / "data" / "beneath.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        # The processes cannot report a gap before the 5 s after which broadcasts are assumed to be missing.
        let_pass(LOCKED)
        db.execute("ROLLBACK")
    until(lambda: server.metric(gaps) >= 1, "the server knows of the gap")
    until(lambda: worker.metric(gaps) >= 1, "the worker knows of the gap")


def test_killed_worker_process_is_replaced_and_all_end_with_their_parent(installation: Installation) -> None:
    running = installation.start("all", env={"BENEATH_WORKER_PROCESSES": "2"})

    def logged(event: str) -> list[dict[str, Any]]:
        return [each for each in running.logs if each["event"] == event]

    until(lambda: len(logged("worker started")) == 2, "both work")
    os.kill(logged("process started")[0]["pid"], signal.SIGKILL)
    until(lambda: len(logged("worker started")) == 3, "the killed one has a successor")
    running.process.kill()
    until(lambda: len(logged("application stopped")) == 2, "both have stopped by themselves")


def test_second_signal_ends_the_application_at_once(installation: Installation) -> None:
    running = installation.start("all", env={"BENEATH_CONTROL_GRACE": "60", "BENEATH_WORKER_GRACE": "60"})
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        # An unfinished request delays the shutdown for the whole grace period.
        connection.sendall(b"POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        running.process.terminate()
        until(lambda: any(each["event"] == "worker stopped" for each in running.logs), "it is stopping")
        assert running.process.running
        running.process.terminate()
        assert running.process.wait(20) == 128 + 15


def test_occupied_port_is_an_error_of_one_line(installation: Installation) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        for name, key in ((SERVER, "CONTROL"), (WORKER, "WORKER")):
            env = {f"BENEATH_{key}_PORT": str(port), "BENEATH_LOG_LEVEL": "error"}
            process = installation.spawn("start", name, env=env)
            assert process.wait() != 0
            [line] = process.stderr.splitlines()
            assert line.startswith(f"beneath: {key.lower()}.port: 127.0.0.1:{port} is already in use")
