"""Optimistic locking: `ETag` in responses, and `If-Match` in requests that change a resource."""

import re
from typing import Annotated, Final

from fastapi import Depends, Header, Response
from pydantic import WithJsonSchema

NO_VERSION: Final = -1
"""A version that no row has."""

_TAG: Final = re.compile(r'"([0-9]{1,9})"')


def tag(response: Response, version: int) -> None:
    """Set the response's `ETag` to the version of its row, which grows by one with every change."""
    response.headers["ETag"] = f'"{version}"'


async def _expected(
    if_match: Annotated[
        str | None,
        Header(
            description="The `ETag` that you read: a resource with another version is not changed. "
            "`*` or nothing: any version.",
            examples=['"1"'],
        ),
        WithJsonSchema({"type": "string"}),
    ] = None,
) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    sent = _TAG.fullmatch(if_match.strip())
    # RFC 9110, 13.1.1: a tag that matches nothing is a failed precondition, even if it is malformed.
    return int(sent[1]) if sent else NO_VERSION


Expected = Annotated[int | None, Depends(_expected)]
"""The version that the change requires; None for any version."""
