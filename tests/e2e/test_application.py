"""The application as processes: effects of requests, gaps, restarts and shutdown."""

import json
import socket
import sqlite3
from contextlib import closing

import pytest

from tests.e2e.application import SERVER, WORKER, Installation, Running
from tests.e2e.processes import let_pass, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

LOCKED = 5.5
"""Seconds for which the database is locked; the queue reports a gap after 5 seconds."""


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


def test_occupied_port_is_an_error_of_one_line(installation: Installation) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        for name, key in ((SERVER, "CONTROL"), (WORKER, "WORKER")):
            env = {f"BENEATH_{key}_PORT": str(port), "BENEATH_LOG_LEVEL": "error"}
            process = installation.spawn("start", name, env=env)
            assert process.wait() != 0
            [line] = process.stderr.splitlines()
            assert line.startswith(f"beneath: {key.lower()}.port: 127.0.0.1:{port} is already in use")
