"""The start of the whole application's worker, as an operator starts it."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.bench.children import PATIENCE, MeasurementFailed
from tests.bench.environments import ROOT
from tests.servers import free_port

POLL = 0.005
"""Seconds between two requests whether the worker is ready."""


def started(url: str, broker: str | None) -> dict[str, float]:
    """Migrate the database, start a worker, and return how long it takes until it is ready, and its memory then.

    Raises:
        MeasurementFailed: a command failed, or the worker is not ready in time.
    """
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BENEATH_", "PYTHON"))}
    environment = {**kept, "BENEATH_DB_URL": url, "BENEATH_WORKER_PORT": str(port), "BENEATH_LOG_LEVEL": "error"}
    if broker is not None:
        environment |= {"BENEATH_MQ_DRIVER": "redis", "BENEATH_MQ_REDIS_URL": broker}
    command = [sys.executable, "-m", "beneath"]
    migrated = subprocess.run(  # noqa: S603  # this project's command
        [*command, "migrate", "up"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if migrated.returncode:
        raise MeasurementFailed(f"migrate up failed: {migrated.stderr.strip()[-200:]}")
    began = time.perf_counter()
    with subprocess.Popen(  # noqa: S603  # this project's command
        [*command, "start", "control-worker"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as worker:
        try:
            _wait_ready(worker, f"http://127.0.0.1:{port}/readyz")
            return {"start_s": time.perf_counter() - began, **_resident(worker.pid)}
        finally:
            worker.kill()


def _wait_ready(worker: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and worker.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1) as response:  # noqa: S310  # the worker's own port
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(POLL)
    raise MeasurementFailed(f"the worker is not ready; exit code {worker.poll()}")


def _resident(process: int) -> dict[str, float]:
    """Return the resident memory of a process; nothing on a system without /proc."""
    try:
        status = Path(f"/proc/{process}/status").read_text("utf-8", "replace")
    except FileNotFoundError:
        return {}
    return {"memory_mb": int(status.partition("VmRSS:")[2].split()[0]) / 1024}
