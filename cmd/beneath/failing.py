"""Finds failing background tasks in the running processes of this machine, by their metrics."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException

from dependencies import Settings

PATIENCE = 1.0
"""Seconds to wait for a process's response."""

MAX_METRICS = 4 * 1024 * 1024
"""Bytes of a response that are read at most."""

FAILING = re.compile(r'^beneath_bus_task_failing\{task="([^"]+)"\} ([1-9]\d*)', re.MULTILINE)


def failing_tasks(settings: Settings) -> list[str]:
    """Return a line for each failing background task; processes that do not respond are skipped."""
    places = list(dict.fromkeys(_places(settings)))
    with ThreadPoolExecutor(len(places)) as threads:
        answers = list(threads.map(_metrics, places))
    return [
        f"the process at {host}:{port}: its background task {task!r} failed {count} times in a row; see its log"
        for (host, port), answer in zip(places, answers, strict=True)
        for task, count in FAILING.findall(answer)
    ]


def _places(settings: Settings) -> Iterator[tuple[str, int]]:
    control, worker = settings.control, settings.worker
    yield _reachable(control.host), control.port
    for number in range(worker.processes):
        yield _reachable(worker.host), worker.port + number


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened at


def _metrics(place: tuple[str, int]) -> str:
    connection = HTTPConnection(*place, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read(MAX_METRICS).decode("utf-8", "replace")
    except (OSError, HTTPException, OverflowError):
        return ""
    finally:
        connection.close()
