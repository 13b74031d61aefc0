"""HTTP servers as runnables."""

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
from beneath.http.addresses import network_forms
from beneath.http.connections import ConnectionLimits, Connections
from infra.telemetry import Sample

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

BACKLOG: Final = 2048
"""Connections that the kernel queues until they are accepted."""

_AT_ONCE: Final = 32
"""Connections accepted in one turn of the event loop, before the first of them can be refused."""


class _Server(uvicorn.Server):
    """Leaves signals to the lifecycle, and accepts connections a few at a time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # asyncio takes one number for how many wait in the kernel and for how many it accepts without a pause.
        for each in sockets or ():
            each.listen(BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves an ASGI application. It listens from its construction to `close()`; connections wait until `run()`."""

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
        """Listen at `host`:`port` (0: any free one); open requests get `grace` seconds at a stop.

        `X-Forwarded-For` and `X-Forwarded-Proto` count only from `proxies`: addresses or networks.

        Raises:
            StartError: the address cannot be had; names the settings under `section`.
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
        """Where it answers."""
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
        """Yield what telemetry shows of this server."""
        return self.connections.samples()

    def close(self) -> None:
        """Close the listening socket."""
        self._socket.close()


def bind(section: str, host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise `StartError` naming `section`'s settings."""
    variable = f"BENEATH_{section.upper()}_PORT"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise StartError(f"{section}.host: cannot listen at {host!r}; use an address of this machine") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            free = f"stop what listens there, or set {variable} to a free port"
            raise StartError(f"{section}.port: {host}:{port} is already in use; {free}") from None
        raise StartError(f"{section}.host, {section}.port: cannot listen at {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener
