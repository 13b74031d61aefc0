"""Which background tasks fail in the processes of these settings that run on this machine."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException

from dependencies import Settings

PATIENCE = 1.0
"""Seconds that a process gets to answer."""

MAX_METRICS = 4 * 1024 * 1024
"""How many bytes of an answer are read."""

FAILING = re.compile(r'^beneath_bus_task_failing\{task="([^"]+)"\} ([1-9]\d*)', re.MULTILINE)


def failing_tasks(settings: Settings) -> list[str]:
    """Return a line for each background task that fails; a process that does not answer has none."""
    places = list(dict.fromkeys(_places(settings)))
    with ThreadPoolExecutor(len(places)) as threads:
        answers = list(threads.map(_metrics, places))
    return [
        f"the process at {host}:{port}: its background task {task!r} failed {count} times in a row; its log says why"
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
