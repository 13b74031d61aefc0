"""Error responses as defined by RFC 9457: `application/problem+json` with a stable `type` for programs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:beneath:problem:"

MAX_DETAIL: Final = 1000
"""The largest number of characters in a problem's `detail`."""

MAX_ERRORS: Final = 20
"""The largest number of errors in `errors`; `errors_total` counts all of them."""

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


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header `Retry-After`, rounded up to at least one second."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
