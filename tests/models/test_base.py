"""Tests of ids and of times in the database."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.dialects import sqlite

from models.base import UtcDateTime, new_id, utc

SQLITE = sqlite.dialect()


def test_ids_sort_by_age() -> None:
    ids = [new_id() for _ in range(1_000)]
    assert ids == sorted(ids)
    assert [each.hex for each in ids] == sorted(each.hex for each in ids)


def test_stored_time_is_read_in_utc() -> None:
    east = datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    stored = UtcDateTime().process_bind_param(east, SQLITE)
    assert UtcDateTime().process_result_value(stored, SQLITE) == datetime(2026, 5, 1, 10, tzinfo=UTC)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="with a time zone, not"):
        UtcDateTime().process_bind_param(datetime(2026, 5, 1, 12), SQLITE)  # noqa: DTZ001 - the naive time under test


def test_utc_keeps_microseconds() -> None:
    assert utc(1.5) == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
