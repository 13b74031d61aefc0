"""The HTTP server: a runnable around uvicorn, with its listening socket."""

import asyncio
import contextlib
import errno
import math
import socket
from collections.abc import Iterator, Sequence
from typing import Final

import structlog
import uvicorn
from starlette.types import ASGIApp

from beneath.errors import StartError
from beneath.http.core.addresses import network_forms
from beneath.http.core.connections import ConnectionLimits, Connections
from infra.telemetry import Sample

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

BACKLOG: Final = 2048
"""Connections that wait in the kernel to be accepted, at most."""

_AT_ONCE: Final = 32
"""Connections that one turn of the event loop accepts at most, so that those over the limit are refused soon."""


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the lifecycle and accepts `_AT_ONCE` connections at a time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # asyncio uses one number for the kernel's backlog and for the connections that it accepts without a pause.
        for each in sockets or ():
            each.listen(BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """A runnable that serves an ASGI application.

    It listens from its construction until `close()`. Connections wait until `run()` is called.
    """

    def __init__(
        self,
        name: str,
        app: ASGIApp,
        *,
        section: str,
        host: str,
        port: int,
        grace: float,
        limits: ConnectionLimits | None = None,
        proxies: Sequence[str] = (),
    ) -> None:
        """Listen at `host`:`port` (0: any free port). A shutdown waits `grace` seconds for open requests.

        `X-Forwarded-For` and `X-Forwarded-Proto` are trusted only from `proxies`, which are addresses or networks.

        Raises:
            StartError: the address is invalid, in use or not permitted. The text names the settings of `section`.
        """
        self.name = name
        self._socket = bind(section, host, port)
        self.connections = Connections(limits or ConnectionLimits())
        config = uvicorn.Config(
            app,
            http=self.connections.protocol(),
            ws="none",
            backlog=_AT_ONCE,
            timeout_keep_alive=math.ceil(self.connections.limits.keep_alive),
            proxy_headers=bool(proxies),
            forwarded_allow_ips=[form for each in proxies for form in network_forms(each)],
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(grace),
        )
        self._server = _Server(config)

    @property
    def url(self) -> str:
        """The URL at which it listens."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def run(self) -> None:
        log.info("server listening", server=self.name, url=self.url)
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        sweeping = asyncio.create_task(self.connections.run())
        try:
            await asyncio.wait({serving, sweeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._server.should_exit = True
            await serving
            sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeping

    def samples(self) -> Iterator[Sample]:
        """Yield the metrics of this server's connections."""
        return self.connections.samples()

    def close(self) -> None:
        """Close the listening socket."""
        self._socket.close()


def bind(section: str, host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        StartError: the address is invalid, in use or not permitted. The text names the settings of `section`.
    """
    variable = f"BENEATH_{section.upper()}_PORT"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise StartError(
            f"{section}.host: cannot listen at {host!r}; use an address of this machine, such as 127.0.0.1"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            free = f"stop the process that listens there, or set {variable} to a free port"
            raise StartError(f"{section}.port: {host}:{port} is already in use; {free}") from None
        remedy = "use another address or port"
        text = f"{section}.host, {section}.port: cannot listen at {host}:{port}: {error.strerror}; {remedy}"
        raise StartError(text) from None
    listener.setblocking(False)
    return listener
