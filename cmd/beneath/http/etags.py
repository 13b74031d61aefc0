"""Changes that must not overwrite one another: `ETag` on what is read, `If-Match` on what is changed."""

from typing import Annotated, Protocol

from fastapi import Depends, Header, Response


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
            pattern=r'^(\*|"[0-9]{1,9}")$',
            description="The `ETag` that you saw: change it only if nobody else did. `*` or nothing: change it anyway.",
            examples=['"1"'],
        ),
    ] = None,
) -> int | None:
    return None if if_match is None or if_match == "*" else int(if_match.strip('"'))


Expected = Annotated[int | None, Depends(_expected)]
"""The version that a change is meant for, None for whatever is there."""
