"""The API's OpenAPI description: FastAPI's schema with the problems of each route."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from beneath.http.core.problems import (
    BAD_REQUEST,
    INDETERMINATE,
    INSUFFICIENT_SCOPE,
    INTERNAL,
    INVALID,
    MALFORMED_JSON,
    MAX_ERRORS,
    MEDIA_TYPE,
    TOO_LARGE,
    TOO_MANY_FAILURES,
    TYPE_PREFIX,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemType,
)

Responses = dict[int | str, dict[str, Any]]

ANYWHERE = (INVALID, INTERNAL, UNAVAILABLE, INDETERMINATE)
AUTHENTICATED = (UNAUTHENTICATED, INSUFFICIENT_SCOPE, TOO_MANY_FAILURES, *ANYWHERE)
WITH_BODY = (BAD_REQUEST, MALFORMED_JSON, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE)

_PROBLEM = {
    "title": "Problem",
    "description": "An error as defined by RFC 9457. Programs rely on `type`; the other fields are for people.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": [TYPE_PREFIX + "not-found"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string", "description": "The id under which the server logged the request."},
        "errors_total": {
            "type": "integer",
            "description": f"Number of errors; `errors` has the first {MAX_ERRORS}.",
        },
        "errors": {
            "type": "array",
            "maxItems": MAX_ERRORS,
            "items": {
                "type": "object",
                "required": ["where", "detail"],
                "properties": {"where": {"type": "string", "examples": ["body.name"]}, "detail": {"type": "string"}},
            },
        },
    },
}


def problems(*kinds: ProblemType) -> Responses:
    """Return the `responses` entries for a route's problems."""
    found: Responses = {}
    for kind in kinds:
        entry = found.setdefault(kind.status, {"description": "", "content": {MEDIA_TYPE: _content()}})
        entry["description"] = " · ".join(filter(None, [entry["description"], kind.title]))
        entry["content"][MEDIA_TYPE]["examples"][kind.slug] = {"value": _example(kind)}
    return found


def versioned(status: int, *, new: bool = False) -> Responses:
    """Return the `responses` entry of a response with `ETag`; with `new`, of a created resource, also `Location`."""
    headers = {"ETag": {"description": "The version of the resource, for `If-Match`.", "schema": {"type": "string"}}}
    if new:
        headers["Location"] = {"description": "Path of the new resource.", "schema": {"type": "string"}}
    return {status: {"headers": headers}}


def describe(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Return a function for `app.openapi`, which builds the description once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schema.setdefault("components", {}).setdefault("schemas", {})["Problem"] = _PROBLEM
            app.openapi_schema = schema
        return app.openapi_schema

    return openapi


def _content() -> dict[str, Any]:
    return {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}


def _example(kind: ProblemType) -> dict[str, Any]:
    return {"type": TYPE_PREFIX + kind.slug, "title": kind.title, "status": kind.status, "detail": kind.title}
