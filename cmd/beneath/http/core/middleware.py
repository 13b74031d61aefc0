"""ASGI middleware: request ids, responses to unexpected errors, security headers, limits on bodies.

Plain ASGI is fast, and context variables that it sets reach the handlers.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from beneath.http.core.problems import INTERNAL, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, ProblemType, problem_response

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Correlate = Callable[[str], AbstractContextManager[None]]
"""`Bus.correlation`: a context in which published events get this correlation id."""

REQUEST_ID: Final = "x-request-id"
_WELL_FORMED: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})

SECURITY_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
"""Headers of every response: browsers neither render, sniff nor cache it. A page may set its own."""


class RequestContext:
    """Assigns each request an id for logs, events and the client, and responds to unexpected errors with 500."""

    def __init__(self, app: ASGIApp, correlate: Correlate) -> None:
        self._app = app
        self._correlate = correlate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        is_head = scope["method"] == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})["request_id"] = request_id
        response = _ResponseSender(send, request_id, has_body=not is_head)
        bound = structlog.contextvars.bound_contextvars(request_id=request_id, correlation_id=request_id)
        with self._correlate(request_id), bound:
            try:
                await self._app(scope, receive, response)
            except Exception:
                log.exception("request failed", method=scope["method"], path=scope["path"])
                if response.started:
                    # A part of the response was sent; only a broken connection shows the client that it is incomplete.
                    raise
                detail = f"it was logged under the request id {request_id}"
                await problem_response(INTERNAL, detail, request_id=request_id)(scope, receive, response)


class _ResponseSender:
    """Sends a response with the common headers, and without its body for HEAD."""

    __slots__ = ("_has_body", "_request_id", "_send", "started")

    def __init__(self, send: Send, request_id: str, *, has_body: bool) -> None:
        self._send = send
        self._request_id = request_id
        self._has_body = has_body
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self._request_id
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        elif not self._has_body:
            message = {**message, "body": b""}
        await self._send(message)


class BodyGuard:
    """Refuses bodies that are not JSON, or larger than `max_body` bytes, before they are read."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length")
        if length is None and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
        elif length is not None and length.isdecimal() and int(length) > self._max_body:
            await self._refuse(TOO_LARGE, self._limit(), scope, receive, send)
        elif length != "0" and not _is_json(headers.get("content-type", "")):
            detail = "send the body with Content-Type: application/json"
            await self._refuse(UNSUPPORTED_MEDIA_TYPE, detail, scope, receive, send)
        elif len(headers.getlist("content-type")) > 1:
            await self._refuse(UNSUPPORTED_MEDIA_TYPE, "send one header Content-Type", scope, receive, send)
        elif any(each.lower() != "identity" for each in headers.getlist("content-encoding")):
            detail = "send the body without Content-Encoding"
            await self._refuse(UNSUPPORTED_MEDIA_TYPE, detail, scope, receive, send)
        else:
            await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body:
                raise HTTPException(TOO_LARGE.status, self._limit())
            return message

        return counted

    def _limit(self) -> str:
        return f"at most {self._max_body} bytes are accepted"

    async def _refuse(self, kind: ProblemType, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope.get("state", {}).get("request_id")
        await problem_response(kind, detail, request_id=request_id)(scope, receive, send)


def _request_id(scope: Scope) -> str:
    wanted = REQUEST_ID.encode()
    for name, value in scope["headers"]:
        if name == wanted and _WELL_FORMED.fullmatch(value):
            return str(value, "ascii")
    return str(uuid7())


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
