"""The application as processes: all effects of a sign-up, and processes whose listeners work."""

import os
import signal
import socket
import time
from typing import Any

import pytest

from tests.e2e.application import Caller, Installation, Running
from tests.e2e.processes import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def assert_sign_up_is_whole(installation: Installation, ada: Caller, email: str) -> None:
    """Check that all effects of a sign-up exist."""
    [organization] = ada.items("/v1/organizations")
    [project] = ada.items(f"/v1/organizations/{organization['id']}/projects")
    assert project["organization_id"] == organization["id"]

    [mail] = until(lambda: installation.mails_to(email), "the welcome mail is there")
    assert "Subject: Welcome" in mail
    journal = f"/v1/organizations/{organization['id']}/audit"
    until(lambda: len(ada.items(journal)) >= 2, "the journal is written")
    entries = ada.items(journal)
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
