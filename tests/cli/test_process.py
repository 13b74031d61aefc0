"""The executable as a process: signals, ports, services without a provider, and the contents of the wheel."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from beneath.runtime.processes import STARTED

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PACKAGES = ("bus", "models", "services", "infra", "dependencies", "cmd")
BILLING = """
from bus import Bus


class BillingService:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts `beneath` in an empty folder; kill the processes afterwards."""
    processes: list[subprocess.Popen[str]] = []

    def beneath(*arguments: str, source: Path = ROOT, pass_fds: Sequence[int] = ()) -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("BENEATH_")}
        environ["PYTHONPATH"] = f"{source}{os.pathsep}{source / 'cmd'}"
        command = [sys.executable, "-P", "-m", "beneath", *arguments]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
            command,
            cwd=tmp_path,
            env=environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
        )
        processes.append(process)
        return process

    yield beneath
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=40)
    return process.returncode, out, err


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


ANY_PORT = ("--set", "control.port=0", "--set", "worker.port=0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_process_cleanly(start: Start, number: signal.Signals) -> None:
    process = start(*ANY_PORT, "start", "all")
    wait_for_line(process, "worker started")
    process.send_signal(number)
    code, out, err = finished(process)
    assert (code, out) == (0, "")
    assert "Traceback" not in err


def test_second_signal_ends_the_process_at_once(start: Start, tmp_path: Path) -> None:
    process = start(*ANY_PORT, "start", "all")
    wait_for_line(process, "worker started")
    # The process is stopped meanwhile, so that both signals are pending before it handles the first.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    code, _, err = finished(process)
    assert code in {128 + signal.SIGINT, 128 + signal.SIGTERM}
    assert "Traceback" not in err


def test_occupied_port_is_an_error_of_one_line(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = ("--set", f"control.port={port}", "--set", "log.level=warning")
        code, out, err = finished(start(*settings, "start", "all"))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"beneath: control.port: 127.0.0.1:{port} is already in use")


def test_child_reports_its_start_to_its_parent_and_stops_at_its_request(start: Start) -> None:
    parent, child = socket.socketpair()
    with parent, child:
        number = child.fileno()
        process = start(*ANY_PORT, "start", "control-worker", "--parent-fd", str(number), pass_fds=[number])
        parent.settimeout(40)
        assert parent.recv(1) == STARTED
        parent.send(b"s")
        assert finished(process)[0] == 0


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with a service that no container provides."""
    copy = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "services/billing").mkdir()
    (copy / "services/billing/service.py").write_text(BILLING)
    return copy


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "all"],
        ["start", "control-worker"],
        ["user", "create", "ada@example.com"],
        ["bus", "publish", "UserCreated", "{}"],
    ],
)
def test_service_without_a_provider_stops_every_publishing_command(
    start: Start, planted: Path, arguments: Sequence[str]
) -> None:
    code, out, err = finished(start(*ANY_PORT, *arguments, source=planted))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "services.billing.service.BillingService" in err
    assert "`billing: BillingService`" in err
    assert "dependencies/services.py" in err


@pytest.mark.parametrize("arguments", [["config", "show"], ["bus", "dead", "list", "--json"]])
def test_service_without_a_provider_stops_no_other_command(
    start: Start, planted: Path, arguments: Sequence[str]
) -> None:
    code, _, err = finished(start(*arguments, source=planted))
    assert (code, err) == (0, "")


def test_module_cmd_is_that_of_the_standard_library() -> None:
    assert not (ROOT / "cmd/__init__.py").exists()
    command = [sys.executable, "-c", "import cmd; print(cmd.Cmd.__module__); import pdb"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - ours
    assert done.stdout == "cmd\n"


def test_wheel_contains_exactly_the_runtime_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)  # noqa: S603 - ours
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"bus", "models", "services", "infra", "dependencies", "beneath", "beneath_backend-0.1.0.dist-info"}
    sources = {
        str(path.relative_to(ROOT)).removeprefix("cmd/")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"
    }
    assert {name for name in names if ".dist-info/" not in name} >= sources
    entry_points = zipfile.ZipFile(wheel).read("beneath_backend-0.1.0.dist-info/entry_points.txt").decode()
    assert "beneath = beneath.__main__:main" in entry_points
