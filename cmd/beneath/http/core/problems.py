"""Error responses as defined by RFC 9457: `application/problem+json` with a stable `type` for programs."""

import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import IntegrityError, OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from bus import PublishIndeterminate, PublishRejected
from infra.db import CommitIndeterminate, DatabaseUnavailable, Violation, violation_of
from infra.mq import QueueUnavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:beneath:problem:"
RETRY_AFTER: Final = 1
"""Seconds after which clients should repeat a request that failed temporarily."""

MAX_DETAIL: Final = 1000
"""The largest number of characters in a problem's `detail`."""

MAX_ERRORS: Final = 20
"""The largest number of errors in `errors`; `errors_total` counts all of them."""

MAX_SUMMARY: Final = 5
"""The largest number of errors that `detail` repeats."""

MAX_PART: Final = 200
"""The largest number of characters that a response repeats of a part of the request."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A type of problem: the suffix of its `type`, its HTTP status, and its title."""

    slug: str
    status: int
    title: str


BAD_REQUEST = ProblemType("bad-request", 400, "The request cannot be read")
MALFORMED_JSON = ProblemType("malformed-json", 400, "The body is not JSON")
UNAUTHENTICATED = ProblemType("unauthenticated", 401, "A valid secret is needed")
INSUFFICIENT_SCOPE = ProblemType("insufficient-scope", 403, "The secret lacks a scope")
NOT_ALLOWED = ProblemType("not-allowed", 403, "Your role does not allow this")
NOT_FOUND = ProblemType("not-found", 404, "The resource does not exist")
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", 405, "The resource does not support this method")
REQUEST_TIMEOUT = ProblemType("request-timeout", 408, "The request took too long to arrive")
CONFLICT = ProblemType("conflict", 409, "The request conflicts with stored data")
CHANGED = ProblemType("changed", 412, "The resource was changed since you read it")
TOO_LARGE = ProblemType("too-large", 413, "The body is too large")
UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported-media-type", 415, "The body must be JSON")
INVALID = ProblemType("invalid", 422, "The request has invalid values")
TOO_MANY_FAILURES = ProblemType("too-many-failures", 429, "Too many wrong secrets")
TOO_MANY_REQUESTS = ProblemType("too-many-requests", 429, "The limit of requests is reached")
INTERNAL = ProblemType("internal", 500, "Internal error")
INDETERMINATE = ProblemType("indeterminate", 503, "The outcome of the request is unknown")
UNAVAILABLE = ProblemType("unavailable", 503, "The service is temporarily unavailable")

_CONFLICTS: Final = {
    Violation.REFERENCE: "the request refers to a resource that does not exist, or deletes one that is still in use",
    Violation.DUPLICATE: "a resource with a value of the request exists already",
}

_BY_STATUS: Final = {
    kind.status: kind
    for kind in (BAD_REQUEST, UNAUTHENTICATED, NOT_FOUND, METHOD_NOT_ALLOWED, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE)
}


Handler = Callable[[Request, Exception], Awaitable[Response]]


class ProblemError(Exception):
    """An error that a handler or a dependency raises to respond with a problem."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        headers: Mapping[str, str] | None = None,
        *,
        errors: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = headers
        self.errors = errors


def problem_response(
    kind: ProblemType,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, str]] = (),
    request_id: str | None = None,
) -> Response:
    """Return the response for a problem; `errors` has an error per invalid field.

    The body lists the first `MAX_ERRORS` of them, and their number as `errors_total`.
    """
    body: dict[str, Any] = {"type": TYPE_PREFIX + kind.slug, "title": kind.title, "status": kind.status}
    body["detail"] = shortened(detail, MAX_DETAIL)
    if errors:
        body["errors"] = [{name: shortened(text) for name, text in each.items()} for each in errors[:MAX_ERRORS]]
        body["errors_total"] = len(errors)
    if request_id is not None:
        body["request_id"] = request_id
    return Response(json.dumps(body), kind.status, headers, MEDIA_TYPE)


def shortened(text: str, length: int = MAX_PART) -> str:
    """Return `text`, cut to `length` characters: a response repeats no more of a request.

    Surrogates, which not every client can decode, become question marks.
    """
    text = text[: length + 1].encode("utf-8", "replace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"


def install(app: FastAPI, domain_problems: Mapping[type[Exception], ProblemType]) -> None:
    """Install the error handlers that turn errors of handlers, dependencies and the router into problems.

    `domain_problems` has the problem type for each error of a service. Any other error becomes an internal error.
    """
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DatabaseUnavailable, _unavailable)
    app.add_exception_handler(OperationalError, _unavailable)
    app.add_exception_handler(IntegrityError, _conflict)
    app.add_exception_handler(PublishRejected, _unavailable)
    app.add_exception_handler(QueueUnavailable, _unavailable)
    app.add_exception_handler(CommitIndeterminate, _indeterminate)
    app.add_exception_handler(PublishIndeterminate, _indeterminate)
    for error, kind in domain_problems.items():
        app.add_exception_handler(error, _of_domain(kind))


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - Starlette passes the registered type
    return _answer(request, error.kind, error.detail, headers=error.headers, errors=error.errors)


def _of_domain(kind: ProblemType) -> Handler:
    async def domain(request: Request, error: Exception) -> Response:
        # The error's text is left out: a resource that is absent and one that is not visible must look the same.
        detail = kind.title if kind is NOT_FOUND else str(error)
        wait = getattr(error, "retry_after", None)
        return _answer(request, kind, detail, headers=None if wait is None else retry_after(wait))

    return domain


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - see above
    if error.status_code == METHOD_NOT_ALLOWED.status:
        allow = {"Allow": ", ".join(allowed_methods(request))}
        return _answer(request, METHOD_NOT_ALLOWED, _asked(request), headers=allow)
    kind = _BY_STATUS.get(error.status_code) or ProblemType(
        f"http-{error.status_code}", error.status_code, error.detail
    )
    detail = _asked(request) if kind is NOT_FOUND else error.detail
    return _answer(request, kind, detail, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - see above
    found = error.errors()
    if found and found[0]["type"] == "json_invalid":
        return _answer(request, MALFORMED_JSON, f"at character {found[0]['loc'][-1]}: {found[0]['ctx']['error']}")
    errors = [{"where": _where(each["loc"]), "detail": each["msg"].removeprefix("Value error, ")} for each in found]
    detail = "; ".join(f"{each['where']}: {each['detail']}" for each in errors[:MAX_SUMMARY])
    if len(errors) > MAX_SUMMARY:
        detail += f"; and {len(errors) - MAX_SUMMARY} more"
    return _answer(request, INVALID, detail, errors=errors)


async def _unavailable(request: Request, error: Exception) -> Response:
    log.warning("request rejected", error=str(error))
    return _answer(request, UNAVAILABLE, "nothing was changed; try again", headers=retry_after(RETRY_AFTER))


async def _conflict(request: Request, error: Exception) -> Response:
    assert isinstance(error, IntegrityError)  # noqa: S101 - see above
    violation = violation_of(error)
    if violation is None:
        raise error  # NULL, or a value that a CHECK refuses: the request's validation is incomplete
    log.warning("constraint violated", violation=str(violation), error=str(error.orig).partition("\n")[0])
    return _answer(request, CONFLICT, _CONFLICTS[violation])


async def _indeterminate(request: Request, error: Exception) -> Response:
    log.error("request outcome lost", error=str(error))
    return _answer(
        request, INDETERMINATE, "the outcome is unknown: check whether the change is stored before you try again"
    )


def allowed_methods(request: Request) -> list[str]:
    """Return the methods that the API's description has for the request's path; the router knows those of one route."""
    app: FastAPI = request.app
    described = {compile_path(path)[0]: methods for path, methods in app.openapi()["paths"].items()}
    found = {
        method.upper() for path, methods in described.items() if path.match(request.scope["path"]) for method in methods
    }
    found = found or {"GET"}  # routes outside of the description, such as /healthz, support GET only
    return sorted(found | {"HEAD"}) if "GET" in found else sorted(found)


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header `Retry-After`, rounded up to at least one second."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _answer(
    request: Request,
    kind: ProblemType,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[Mapping[str, str]] = (),
) -> Response:
    request_id = request.scope.get("state", {}).get("request_id")
    return problem_response(kind, detail, headers=headers, errors=errors, request_id=request_id)


def _asked(request: Request) -> str:
    return f"{shortened(request.method)} {shortened(request.scope['path'])}"


def _where(location: Sequence[str | int]) -> str:
    """Return the place of an error, such as `body.name` or `query.limit`, with each part shortened."""
    return ".".join(shortened(str(part)) for part in location)
