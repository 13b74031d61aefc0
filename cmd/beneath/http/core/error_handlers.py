"""The error handlers of the API: they turn errors of handlers, dependencies and the router into problems."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import IntegrityError, OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from beneath.http.core.problems import (
    BAD_REQUEST,
    CONFLICT,
    INDETERMINATE,
    INVALID,
    MALFORMED_JSON,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemError,
    ProblemType,
    problem_response,
    retry_after,
    shortened,
)
from bus import PublishIndeterminate, PublishRejected
from infra.db import CommitIndeterminate, DatabaseUnavailable, Violation, violation_of
from infra.mq import QueueUnavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

RETRY_AFTER: Final = 1
"""Seconds after which clients should repeat a request that failed temporarily."""

MAX_SUMMARY: Final = 5
"""The largest number of errors that `detail` repeats."""

_CONFLICTS: Final = {
    Violation.REFERENCE: "the request refers to a resource that does not exist, or deletes one that is still in use",
    Violation.DUPLICATE: "a resource with a value of the request exists already",
}

_BY_STATUS: Final = {
    kind.status: kind
    for kind in (BAD_REQUEST, UNAUTHENTICATED, NOT_FOUND, METHOD_NOT_ALLOWED, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE)
}


Handler = Callable[[Request, Exception], Awaitable[Response]]


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
