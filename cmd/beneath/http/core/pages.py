"""Pagination of lists. A cursor is the encoded key of a page's last item, opaque to clients."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Annotated, Final, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

T = TypeVar("T")
Row = TypeVar("Row")

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
_LARGEST: Final = 2**31 - 1
"""The largest number that the column can store; a database may refuse to compare it with a larger one."""


class Page(BaseModel, Generic[T]):
    """A page of a list, with the cursor of the next page."""

    items: list[T]
    next: str | None = Field(description="The `cursor` of the next page; null on the last page.")


def _decode(text: object, size: int) -> bytes:
    try:
        raw = urlsafe_b64decode(str(text) + "==")
    except ValueError:
        raw = b""
    if len(raw) != size:
        raise ValueError("not a cursor: send the `next` of the previous page, or nothing")
    return raw


def _id(text: object) -> UUID | None:
    return None if text is None else UUID(bytes=_decode(text, 16))


def _number(text: object) -> int | None:
    return None if text is None else min(int.from_bytes(_decode(text, 8)), _LARGEST)


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Number of items per page, at most.")


class ByAge(_Query):
    """The query of a list of rows with ids, oldest first."""

    cursor: Annotated[
        UUID | None, BeforeValidator(_id), WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9_-]{22}$"})
    ] = Field(None, description="The `next` of the previous page.")

    def of(self, rows: Sequence[Row], item: Callable[[Row], T], key: Callable[[Row], UUID]) -> Page[T]:
        """Return the page of `rows`, which were queried with `limit` + 1."""
        return _page(rows, item, self.limit, lambda row: key(row).bytes)


class BySequence(_Query):
    """The query of a list of numbered rows, from 1 on."""

    cursor: Annotated[
        int | None, BeforeValidator(_number), WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9_-]{11}$"})
    ] = Field(None, description="The `next` of the previous page.")

    def of(self, rows: Sequence[Row], item: Callable[[Row], T], key: Callable[[Row], int]) -> Page[T]:
        """Return the page of `rows`, which were queried with `limit` + 1."""
        return _page(rows, item, self.limit, lambda row: key(row).to_bytes(8))


def _page(rows: Sequence[Row], item: Callable[[Row], T], limit: int, key: Callable[[Row], bytes]) -> Page[T]:
    shown = rows[:limit]
    more = len(rows) > limit
    cursor = urlsafe_b64encode(key(shown[-1])).decode().rstrip("=") if more else None
    return Page(items=[item(row) for row in shown], next=cursor)
