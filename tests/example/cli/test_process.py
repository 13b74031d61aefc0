"""The executable as a process: supervised workers."""

import json
import os
import signal
import time

import pytest

from tests.cli.test_process import Start, free_port, wait_for_line

pytestmark = pytest.mark.e2e


def test_worker_processes_are_supervised_and_end_with_their_parent(start: Start) -> None:
    first = free_port()
    process = start(
        *("--set", "worker.processes=2", "--set", f"worker.port={first}", "--set", "log.format=json"),
        *("start", "control-worker"),
    )
    children = [json.loads(wait_for_line(process, "process started"))["pid"] for _ in range(2)]
    for _ in range(2):
        wait_for_line(process, "worker started")
    os.kill(children[0], signal.SIGKILL)
    wait_for_line(process, "process ended")
    children[0] = json.loads(wait_for_line(process, "process started"))["pid"]
    wait_for_line(process, "worker started")
    process.kill()
    deadline = time.monotonic() + 20
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
