"""`make bench-http`: compares GETs of the API with bare FastAPI routes of the same queries, each in a server process.

Both are measured alternately in one run. Absolute figures depend on the machine; compare the ratio.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from tests.bench.drivers import report
from tests.e2e.application import SERVER, Running
from tests.e2e.processes import ROOT, Processes, until

PATHS = ("/v1/me", "/v1/organizations")
ORGANIZATIONS = 20
GOAL = ">= 50 %"


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and the headers of every request to it."""

    url: str
    headers: Mapping[str, str]

    def get(self, path: str) -> httpx2.Response:
        """Return one response."""
        return httpx2.get(self.url + path, headers=self.headers, timeout=30)

    async def rate(self, path: str, count: int, connections: int) -> float:
        """Return GETs per second, over `connections` persistent connections."""
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n{head}\r\n".encode()
        opened = [await self._connect() for _ in range(connections)]
        began = time.perf_counter()
        await asyncio.gather(*[_ask(*each, request, count // connections) for each in opened])
        taken = time.perf_counter() - began
        for _, writer in opened:
            writer.close()
            await writer.wait_closed()
        return count // connections * connections / taken

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = urlsplit(self.url)
        return await asyncio.open_connection(address.hostname, address.port)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200 "):
            raise RuntimeError(f"not what was asked for: {head.decode()}")
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))


def start_ours(processes: Processes, folder: Path) -> tuple[Target, str]:
    """Start the control server with a user in some organizations; return it, and the user's id."""
    env = {"BENEATH_CONTROL_PORT": "0", "BENEATH_LOG_FORMAT": "json"}
    server = Running(processes.python("-m", "beneath", "start", SERVER, cwd=folder, env=env))
    server.wait_ready()
    ada = server.sign_up("ada@example.com")
    for number in range(ORGANIZATIONS - 1):
        assert ada.request("POST", "/v1/organizations", {"name": f"Organization {number}"}).status_code == 201
    user_id: str = ada.request("GET", "/v1/me").json()["id"]
    return Target(ada.url, {"Authorization": f"Bearer {ada.secret}"}), user_id


def start_bare(processes: Processes, folder: Path, user_id: str) -> Target:
    """Start the bare routes over the same file."""
    file = folder / "data" / "beneath.db"
    process = processes.python("-m", "tests.example.bench.bare_http", str(file), user_id, cwd=ROOT)

    def port() -> str:
        return process.stdout.strip()

    target = Target(f"http://127.0.0.1:{until(port, 'the bare routes listen')}", {})
    until(lambda: target.get(PATHS[0]).status_code == 200, "the bare routes answer")
    return target


def compare(ours: Target, bare: Target, path: str, arguments: argparse.Namespace) -> None:
    """Measure both alternately, and report the best of each, because noise only lowers the rate."""
    answers = [json.loads(each.get(path).content) for each in (ours, bare)]
    assert answers[0] == answers[1], "they are to be compared doing the same"
    best, best_bare = 0.0, 0.0
    for _ in range(arguments.rounds):
        best_bare = max(best_bare, asyncio.run(bare.rate(path, arguments.count, arguments.connections)))
        best = max(best, asyncio.run(ours.rate(path, arguments.count, arguments.connections)))
    report(f"GET {path}, {arguments.connections} connections", best, best_bare, GOAL)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--count", type=int, default=1_500, help="requests per measurement")
    parser.add_argument("-r", "--rounds", type=int, default=5, help="how often each pair is measured")
    parser.add_argument("-c", "--connections", type=int, default=16, help="how many requests are in flight at a time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Processes() as processes:
        ours, user_id = start_ours(processes, Path(name))
        bare = start_bare(processes, Path(name), user_id)
        print(f"\nhttp\n{'':<44}  {'ours':>14}  {'bare':>14}  {'ratio':>7}   goal")  # noqa: T201
        for path in PATHS:
            compare(ours, bare, path, arguments)


if __name__ == "__main__":
    main()
