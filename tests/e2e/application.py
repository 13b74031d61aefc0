"""The application as separate processes: `beneath` in a new directory, and HTTP clients."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.e2e.processes import Process, Processes, until
from tests.stacks import Place

SERVER, WORKER = "control-server", "control-worker"


class Installation:
    """A directory in which `beneath` runs, and its processes, which listen on free ports."""

    def __init__(self, processes: Processes, folder: Path, place: Place, command: tuple[str, ...] = ()) -> None:
        self._processes = processes
        self._place = place
        self._command = command
        self.folder = folder

    def spawn(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Run `beneath` with these arguments."""
        settings = {
            "BENEATH_CONTROL_PORT": "0",
            "BENEATH_WORKER_PORT": "0",
            "BENEATH_LOG_FORMAT": "json",
            **self._place.environment,
            **(env or {}),
        }
        if self._command:
            return self._processes.start([*self._command, *arguments], cwd=self.folder, env=settings)
        return self._processes.python("-m", "beneath", *arguments, cwd=self.folder, env=settings)

    def start(self, *names: str, env: Mapping[str, str] | None = None) -> "Running":
        """Start the given startables; return when they are ready."""
        running = Running(self.spawn("start", *names, env=env))
        running.wait_ready()
        return running

    def run(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Run a command that must succeed; return its output, parsed if it is JSON."""
        process = self.spawn(*arguments)
        assert process.wait() == 0, process.stderr
        return json.loads(process.stdout) if "--json" in arguments else process.stdout.strip()

    def stats(self, listener: str) -> dict[str, Any]:
        """Return the row of `beneath bus stats` for a listener."""
        rows: list[dict[str, Any]] = self.run("bus", "stats", "--json")
        return next(row for row in rows if row["listener"] == listener)

    def mails(self) -> list[str]:
        """Return the mails written so far."""
        return [each.read_text() for each in sorted((self.folder / "data" / "mail").glob("*.eml"))]

    def mails_to(self, email: str) -> list[str]:
        """Return the mails to one address."""
        return [mail for mail in self.mails() if f"To: {email}" in mail]


class Running:
    """A process of the application."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def logs(self) -> list[dict[str, Any]]:
        """The log output so far."""
        whole = self.process.stderr.rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    @property
    def url(self) -> str:
        """The URL of the HTTP server, from the log."""
        return str(next(each["url"] for each in self.logs if each["event"] == "server listening"))

    def wait_ready(self) -> None:
        """Wait until the process is ready."""

        def listening() -> bool:
            assert self.process.running, self.process.stderr
            return any(each["event"] == "server listening" for each in self.logs)

        until(listening, f"{self.process} listens")
        until(lambda: self.get("/readyz").status_code == 200, f"{self.process} is ready")

    def get(self, path: str) -> httpx2.Response:
        """Send a GET without a secret; return the response."""
        return httpx2.get(self.url + path, timeout=30)

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name and labels in the Prometheus format."""
        answer = self.get("/metrics")
        assert answer.status_code == 200, answer.text
        lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        return self.metrics()[name]

    def sign_up(self, email: str, name: str = "Ada") -> "Caller":
        """Create a user, and return a client that acts as that user."""
        answer = httpx2.post(f"{self.url}/v1/users", json={"email": email, "name": name}, timeout=30)
        assert answer.status_code == 201, answer.text
        body = answer.json()
        assert body["user"]["email"] == email
        return Caller(self.url, body["secret"])

    def stop(self) -> None:
        """Stop the process with SIGTERM; check that it exits with 0."""
        self.process.terminate()
        assert self.process.wait() == 0, self.process.stderr


@dataclass(frozen=True, slots=True)
class Caller:
    """A client with the secret of a user."""

    url: str
    secret: str

    def items(self, path: str) -> list[dict[str, Any]]:
        """Return the items of a list."""
        answer = self.request("GET", path)
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def request(self, method: str, path: str, body: object = None) -> httpx2.Response:
        """Send a request."""
        headers = {"Authorization": f"Bearer {self.secret}"}
        return httpx2.request(method, self.url + path, json=body, headers=headers, timeout=30)
