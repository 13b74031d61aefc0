"""Declarations on SQLite beyond the contract: when they return, and what they refuse."""

import asyncio
from pathlib import Path

import pytest

from infra.clock import FakeClock
from infra.db import Database
from infra.mq import REGISTRY_TTL, QueueUnavailable
from infra.mq.drivers.sql import SqlQueue
from tests.contract.sqlite_harness import SqliteHarness
from tests.infra.mq.acting import subscription


async def has_ended(clock: FakeClock, task: "asyncio.Future[None]") -> bool:
    """Return whether `task` ends without an advance of the clock."""
    await asyncio.wait({task}, timeout=0.05)
    await clock.settle()
    return task.done()


async def test_declare_returns_after_all_subscription_caches_have_expired(path: Path) -> None:
    clock = FakeClock()
    harness = SqliteHarness(f"sqlite:///{path}", clock)
    first, second = await harness.queue(), await harness.queue()
    new = [subscription("new")]
    changing = asyncio.ensure_future(first.declare(new, []))
    assert not await has_ended(clock, changing)
    # The second declaration changes nothing, but the publishers may not know of the first one yet.
    repeating = asyncio.ensure_future(second.declare(new, []))
    await clock.advance(REGISTRY_TTL - 0.01)
    assert not await has_ended(clock, changing)
    assert not await has_ended(clock, repeating)
    await clock.advance(0.2)
    await asyncio.gather(changing, repeating)
    assert await has_ended(clock, asyncio.ensure_future(second.declare(new, []))), "nothing changed"
    await harness.close()


async def test_missing_tables_are_refused_with_the_migrate_command(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    await db.open()
    queue = SqlQueue(db, clock=FakeClock())
    with pytest.raises(QueueUnavailable, match=r"empty\.db: the queue's tables are missing: run `beneath migrate up`"):
        await queue.open()
    await queue.close()
    await db.close()


def test_unsupported_dialect_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    db = Database("sqlite:///x.db")
    monkeypatch.setattr(db.dialect, "name", "oracle")
    with pytest.raises(QueueUnavailable, match="works on sqlite, postgresql, not on oracle"):
        SqlQueue(db, clock=FakeClock())
