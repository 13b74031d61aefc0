"""Changes that must not overwrite one another: `ETag` on what is read, `If-Match` on what is changed."""

import re
from typing import Annotated, Final, Protocol

from fastapi import Depends, Header, Response
from pydantic import WithJsonSchema

NO_VERSION: Final = -1
"""What nothing is ever at."""

_TAG: Final = re.compile(r'"([0-9]{1,9})"')


class Versioned(Protocol):
    """A row with a version that grows with every change."""

    version: int


def tag(response: Response, row: Versioned) -> None:
    """Tell the client which version it sees."""
    response.headers["ETag"] = f'"{row.version}"'


async def _expected(
    if_match: Annotated[
        str | None,
        Header(
            description="The `ETag` that you saw: change it only if nobody else did. `*` or nothing: change it anyway.",
            examples=['"1"'],
        ),
        WithJsonSchema({"type": "string"}),
    ] = None,
) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    sent = _TAG.fullmatch(if_match.strip())
    # RFC 9110, 13.1.1: what matches nothing is a failed precondition, also if it never could have matched.
    return int(sent[1]) if sent else NO_VERSION


Expected = Annotated[int | None, Depends(_expected)]
"""The version that a change is meant for, None for whatever is there."""
