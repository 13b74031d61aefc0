"""TCP keepalive: the operating system ends connections whose peer does not answer any more."""

import socket
from collections.abc import Mapping


def enable_keepalive(connection: socket.socket, options: Mapping[str, int]) -> None:
    """Enable keepalive on a TCP connection, and set those of the TCP `options`, by name, that this system has.

    Raises:
        OSError: the connection is lost.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
