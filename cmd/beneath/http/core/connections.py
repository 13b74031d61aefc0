"""Client connections of a server, limited in number and in the time for which the server waits for each client."""

import asyncio
import logging
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import h11
import structlog
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from beneath.http.core.addresses import plain_address
from beneath.http.core.middleware import SECURITY_HEADERS
from beneath.http.core.problems import (
    BAD_REQUEST,
    REQUEST_TIMEOUT,
    UNAVAILABLE,
    ProblemType,
    problem_response,
    retry_after,
)
from beneath.http.core.strict import StrictConnection
from infra.telemetry import Sample

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_HEAD: Final = 16 * 1024
"""Largest request line with headers, in bytes."""

PROGRESS: Final = 64 * 1024
"""Bytes of a response that a client must read within `request_timeout`, unless fewer are left."""

REPORT_EVERY: Final = 60.0
"""Seconds between two log lines about a limit that is reached repeatedly."""

_RETRY_AFTER: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Bounds on the connections of one server."""

    max_connections: int = 500
    """Connections that are open at the same time, but at most half of the process's file descriptors."""

    request_timeout: float = 20.0
    """Seconds from a request's first byte to its last, and for a client to read `PROGRESS` bytes of its response."""

    keep_alive: float = 5.0
    """Seconds that a connection may wait for another request."""


class Connections:
    """The open connections of one server.

    At the limit a new connection replaces the one whose client has kept the server waiting longest, by not sending its
    request or not reading its response. If the server is working on a request of every connection, the new one gets
    503. So clients that neither send nor read do not exclude other clients.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        open_files = _max_open_files()
        # The other half is for the database, the queue and files, without which the process ends.
        self.limit = min(limits.max_connections, max(1, open_files // 2))
        """Open connections of this server, at most."""
        self.evicted = 0
        self.refused = 0
        self.timed_out = 0
        self.malformed = 0
        self._open: set[HttpConnection] = set()
        self._waiting: dict[HttpConnection, None] = {}
        self._reported, self._report_from = 0, 0.0
        if self.limit < limits.max_connections:
            log.warning(
                "connection limit lowered",
                max_connections=limits.max_connections,
                limit=self.limit,
                open_files=open_files,
            )

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> "Iterator[HttpConnection]":
        return iter(list(self._open))

    def protocol(self) -> type[asyncio.Protocol]:
        """Return a factory of connections for uvicorn's option `http`."""

        def connect(
            config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: object = None
        ) -> HttpConnection:
            return HttpConnection(self, config, server_state, app_state)

        # uvicorn only calls it, with these arguments.
        return cast("type[asyncio.Protocol]", connect)

    def admit(self, connection: "HttpConnection") -> bool:
        """Register a new connection, evicting another at the limit; return False if none could be evicted."""
        admitted = len(self._open) < self.limit or self._evict()
        self.refused += not admitted
        self._open.add(connection)
        return admitted

    def remove(self, connection: "HttpConnection") -> None:
        """Unregister a connection that has ended."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def wait(self, connection: "HttpConnection", *, again: bool) -> None:
        """Record that the server waits for the client: since now if `again`, otherwise since the wait began."""
        if again:
            self._waiting.pop(connection, None)
        self._waiting.setdefault(connection)

    def serve(self, connection: "HttpConnection") -> None:
        """Record that the server works on a request and does not wait for the client."""
        self._waiting.pop(connection, None)

    def sweep(self, now: float) -> None:
        """End the connections whose deadline has passed at `now`, the event loop's time."""
        for connection in self:
            connection.check(now)

    async def run(self) -> None:
        """Sweep until cancelled."""
        loop = asyncio.get_running_loop()
        interval = min(1.0, self.limits.request_timeout / 2)
        while True:
            await asyncio.sleep(interval)
            self.sweep(loop.time())
            self._report(loop.time())

    def samples(self) -> Iterator[Sample]:
        """Yield the metrics of the connections."""
        yield Sample("http_connections", "Open connections.", "gauge", len(self._open), {})
        ended = "Connections that were ended or refused, by reason."
        counts = {
            "evicted": self.evicted,
            "refused": self.refused,
            "timeout": self.timed_out,
            "malformed": self.malformed,
        }
        for reason, count in counts.items():
            yield Sample("http_connections_ended", ended, "counter", count, {"reason": reason})

    def _report(self, now: float) -> None:
        if now < self._report_from or self.evicted + self.refused == self._reported:
            return
        log.warning("connection limit reached", limit=self.limit, evicted=self.evicted, refused=self.refused)
        self._reported, self._report_from = self.evicted + self.refused, now + REPORT_EVERY

    def _evict(self) -> bool:
        # A closing connection with nothing left to write ends in the next turn of the event loop without eviction.
        oldest = next((each for each in self._waiting if not each.transport.is_closing() or each.unsent), None)
        if oldest is None:
            return False
        self.evicted += 1
        oldest.transport.abort()
        self.remove(oldest)
        return True


class HttpConnection(H11Protocol):
    """One connection, with a deadline for every wait for its client. It refuses with problems (RFC 9457)."""

    conn: StrictConnection

    def __init__(
        self, connections: Connections, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.conn = StrictConnection(MAX_HEAD)
        # uvicorn logs every malformed request, so that any client could fill the log. A metric counts them.
        self.logger = logging.getLogger("uvicorn.error.connection")
        self.logger.setLevel(logging.ERROR)
        self._connections = connections
        self._timeout = connections.limits.request_timeout
        self._deadline: float | None = None
        self._phase = (0, False)
        """The wait that the deadline limits: a request's number, and whether no byte of it has arrived."""
        self._unsent = 0
        self._unsent_since = 0.0

    @property
    def unsent(self) -> int:
        """Bytes that were written and not yet read by the client."""
        return self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in H11Protocol
        super().connection_made(transport)
        self.flow = _Flow(transport, self.conn)
        if self.client is not None:
            self.client = (plain_address(self.client[0]), self.client[1])
        if self._connections.admit(self):
            self._deadline = self.loop.time() + self._timeout
            self._connections.wait(self, again=True)
        else:
            self._refuse(UNAVAILABLE, "too many connections are open", retry_after(_RETRY_AFTER))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._follow()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._follow()

    def _follow(self) -> None:
        """Update the deadline and whether the server waits for the client; called after every event that changes them.

        The time of a request begins with its first byte, even if that arrived with the previous request. It ends with
        the request's last byte, even if the response was sent before that.
        """
        if self.transport.is_closing():
            self._deadline = None
            self._note(is_waited_for=self.unsent > 0)
        elif not self.conn.expects_request:
            self._deadline = None
            self._note(is_waited_for=self.flow.write_paused)
        else:
            self.flow.resume_reading()
            is_idle = self.conn.cycles > 0 and self.conn.their_state is h11.IDLE and not self.conn.unparsed
            phase = (self.conn.cycles, is_idle)
            if phase != self._phase:
                self._phase = phase
                self._deadline = self.loop.time() + (self._connections.limits.keep_alive if is_idle else self._timeout)
                self._note(is_waited_for=True, again=True)

    def _note(self, *, is_waited_for: bool, again: bool = False) -> None:
        if is_waited_for:
            self._connections.wait(self, again=again)
        else:
            self._connections.serve(self)

    def send_400_response(self, msg: str) -> None:
        self._connections.malformed += 1
        self._refuse(BAD_REQUEST, msg)

    def check(self, now: float) -> None:
        """End the connection if its client's deadline has passed at `now`."""
        if self._is_stuck(now):
            self._connections.timed_out += 1
            self.transport.abort()
        elif self._deadline is None or now < self._deadline or self.transport.is_closing():
            return
        elif self._phase[1]:
            self.timeout_keep_alive_handler()
        else:
            self._connections.timed_out += 1
            self._deadline = None
            self._refuse(REQUEST_TIMEOUT, f"the request was not complete after {self._timeout:g} s")

    def _is_stuck(self, now: float) -> bool:
        """Return whether the client has read fewer than `PROGRESS` bytes of its response within `request_timeout`."""
        unsent = self.unsent
        if unsent == 0 or self._unsent == 0 or unsent <= self._unsent - PROGRESS:
            self._unsent, self._unsent_since = unsent, now
            return False
        return now - self._unsent_since >= self._timeout

    def _refuse(self, kind: ProblemType, detail: str, headers: dict[str, str] | None = None) -> None:
        """Send a problem unless a response has begun, and close the connection."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            response = problem_response(
                kind, detail, headers={**SECURITY_HEADERS, "connection": "close", **(headers or {})}
            )
            head = h11.Response(status_code=kind.status, headers=response.raw_headers)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._follow()


class _Flow(FlowControl):
    """Reads nothing while a complete request is being handled: pipelined requests would accumulate in memory.

    uvicorn continues to read whenever an application asks for a body, even if that has arrived.
    """

    def __init__(self, transport: asyncio.Transport, conn: StrictConnection) -> None:
        super().__init__(transport)
        self._conn = conn

    def resume_reading(self) -> None:
        if self._conn.expects_request:
            super().resume_reading()


def _max_open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
