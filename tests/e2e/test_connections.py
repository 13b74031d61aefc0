"""A server with few file descriptors and more silent clients than these allow."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.application import SERVER, Installation
from tests.e2e.processes import Processes, until
from tests.stacks import chosen

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FEW = 192
"""The limit of the server's file descriptors."""

SCRIPT = f'ulimit -n {FEW}; exec "$0" -m beneath "$@"'


@pytest.fixture
def cramped(processes: Processes, tmp_path: Path) -> Iterator[Installation]:
    with chosen().place(tmp_path) as place:
        yield Installation(processes, tmp_path, place, ("/bin/sh", "-c", SCRIPT, sys.executable))


def test_silent_clients_neither_end_the_process_nor_block_other_clients(cramped: Installation) -> None:
    server = cramped.start(SERVER)
    host, port = server.url.removeprefix("http://").split(":")
    silent = []
    for _ in range(2 * FEW):
        each = socket.create_connection((host, int(port)))
        each.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        silent.append(each)
    server.sign_up("ada@example.com")
    assert server.metric("beneath_http_connections") <= FEW // 2
    until(lambda: server.metric('beneath_http_connections_ended_total{reason="evicted"}') >= FEW, "room is made")
    for each in silent:
        each.close()
    server.sign_up("bob@example.com")
    server.stop()
