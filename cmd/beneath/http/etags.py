"""Changes that must not overwrite one another: `ETag` on what is read, `If-Match` on what is changed."""

from typing import Annotated, Final, Protocol

from fastapi import Depends, Header, Response
from pydantic import WithJsonSchema

# One strong entity tag, as this API makes them, or the star.
_PATTERN: Final = r'^(\*|"[0-9]{1,9}")$'


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
            pattern=_PATTERN,
            description="The `ETag` that you saw: change it only if nobody else did. `*` or nothing: change it anyway.",
            examples=['"1"'],
        ),
        WithJsonSchema({"type": "string", "pattern": _PATTERN}),
    ] = None,
) -> int | None:
    return None if if_match is None or if_match == "*" else int(if_match.strip('"'))


Expected = Annotated[int | None, Depends(_expected)]
"""The version that a change is meant for, None for whatever is there."""
