"""Pagination of lists in the HTTP API."""

import pytest

from beneath.http.core.pages import BySequence


@pytest.mark.parametrize("cursor", ["_________w8", "__________8", "AAAAAIAAAAA"])
def test_cursor_numbers_beyond_the_column_range_are_clamped(cursor: str) -> None:
    assert BySequence.model_validate({"cursor": cursor}).cursor == 2**31 - 1
