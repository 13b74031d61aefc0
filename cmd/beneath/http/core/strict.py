"""A strict HTTP/1.1 parser: it refuses requests that a proxy could parse differently (request smuggling)."""

import re
from collections.abc import Sequence
from typing import Final

import h11

# h11 keeps its buffer in a private module and attribute, and joins folded lines before it returns a header, so that
# only the buffer shows them. The tests with raw sockets fail if h11 no longer uses this buffer.
from h11._receivebuffer import ReceiveBuffer

MAX_LINES: Final = 100
"""Lines of a request's head, and of the trailer after its body, at most."""

MAX_CHUNK_HEADER: Final = 256
"""Bytes of a chunk's header line, at most: its size, and extensions, which are ignored."""

FREE_CHUNKS: Final = 1000
"""Chunks of a body that may be of any size. Parsing a chunk costs the event loop as much as many bytes."""

CHUNK_SIZE: Final = 256
"""Average bytes that each chunk beyond `FREE_CHUNKS` must have, at least."""

_CRLF: Final = b"\r\n"
_LINE_END: Final = re.compile(rb"[\r\n\0]")
_VERSIONS: Final = frozenset({b"1.0", b"1.1"})
_FRAMING: Final = (b"content-length", b"transfer-encoding")


class StrictConnection(h11.Connection):
    """The server's side of one connection. A request that a proxy could frame differently is a protocol error.

    Refused, beyond what h11 refuses: `Content-Length` together with `Transfer-Encoding`, either of them twice or as a
    list, `Transfer-Encoding` before HTTP/1.1, header lines that are folded or end without CR, chunk headers with a line
    end inside, many tiny chunks, and versions that are neither HTTP/1.0 nor HTTP/1.1.
    """

    def __init__(self, max_head: int) -> None:
        """`max_head` is the largest request line with headers, in bytes."""
        super().__init__(h11.SERVER, max_head)
        self._receive_buffer = _StrictBuffer(max_head)
        self.cycles = 0
        """Requests that were received and answered on this connection."""

    @property
    def expects_request(self) -> bool:
        """Whether the client's current request is incomplete."""
        return self.their_state in {h11.IDLE, h11.SEND_BODY}

    @property
    def unparsed(self) -> int:
        """Bytes that were received and not parsed yet."""
        return len(self._receive_buffer)

    def start_next_cycle(self) -> None:
        super().start_next_cycle()
        self.cycles += 1

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            _require_one_framing(event)
        return event


class _StrictBuffer(ReceiveBuffer):
    """Limits heads, trailers and chunks even if they arrive at once, and refuses ambiguous lines."""

    def __init__(self, max_head: int) -> None:
        super().__init__()
        self._max_head = max_head
        self._chunks = 0
        self._body = 0

    def maybe_extract_lines(self) -> list[bytearray] | None:
        before = len(self)
        lines = super().maybe_extract_lines()
        if lines is not None:
            self._chunks = self._body = 0
            self._require_crlf(lines, before - len(self))
            if len(lines) > MAX_LINES or sum(map(len, lines)) > self._max_head:
                raise h11.LocalProtocolError("the headers are too large")
            _require_plain_lines(lines)
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        line = super().maybe_extract_next_line()
        if line is not None:
            if len(line) > MAX_CHUNK_HEADER:
                raise h11.LocalProtocolError("the header of a chunk is too large")
            if _LINE_END.search(line, 0, len(line) - len(_CRLF)):
                raise h11.LocalProtocolError("the header of a chunk contains a line end")
            self._chunks += 1
            if self._chunks > FREE_CHUNKS + self._body // CHUNK_SIZE:
                raise h11.LocalProtocolError("the body has too many small chunks")
        return line

    def maybe_extract_at_most(self, count: int) -> bytearray | None:
        data = super().maybe_extract_at_most(count)
        if data is not None:
            self._body += len(data)
        return data

    def _require_crlf(self, lines: Sequence[bytearray], taken: int) -> None:
        # h11 also ends a line at a bare LF; a proxy may parse that as a part of a header's value.
        if taken != sum(len(line) + len(_CRLF) for line in lines) + len(_CRLF):
            raise h11.LocalProtocolError("a line ends without CR")


def _require_plain_lines(lines: Sequence[bytearray]) -> None:
    if any(line.startswith((b" ", b"\t")) for line in lines):
        raise h11.LocalProtocolError("a header line is folded")
    # h11 accepts several equal lengths, also in a list; a proxy may have used another of them.
    lengths = [
        value for name, _, value in (line.partition(b":") for line in lines) if name.lower() == b"content-length"
    ]
    if len(lengths) > 1 or any(b"," in value for value in lengths):
        raise h11.LocalProtocolError("there is more than one Content-Length")


def _require_one_framing(request: h11.Request) -> None:
    if request.http_version not in _VERSIONS:
        raise h11.RemoteProtocolError("only HTTP/1.0 and HTTP/1.1 are supported")
    framing = [name for name, _ in request.headers if name in _FRAMING]
    if len(framing) > 1:
        raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding exclude each other")
    if framing == [b"transfer-encoding"] and request.http_version < b"1.1":
        raise h11.RemoteProtocolError("Transfer-Encoding requires HTTP/1.1")
