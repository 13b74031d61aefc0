"""Many mailboxes of one delivery each: SQLite runs a fixed number of queries, and each mailbox ends as it must."""

import dataclasses
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.mq import Outcome, WorkerInfo
from infra.mq.drivers.sql.sqlite import claiming, membership, publishing, registry, settling
from infra.mq.drivers.sql.sqlite.connection import connect
from infra.mq.types import Claim
from tests.infra.mq.acting import done, ids, message, messages, subscription

NOW = 1_000.0


@pytest.fixture
def db(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(connect(path)) as db:
        registry.declare(db, [subscription("mail", ordered=True)], [], now=NOW)
        yield db


def publish(db: sqlite3.Connection, count: int, *, keys: int) -> None:
    publishing.publish(db, messages(count, keys=keys), 120.0, now=NOW)


def worker(db: sqlite3.Connection) -> int:
    return membership.join(db, WorkerInfo(id="w", subscriptions=frozenset({"mail"})), now=NOW)


def claim(db: sqlite3.Connection, owner: int, limit: int = 1000) -> list[Claim]:
    return claiming.claim(db, owner, {"mail": limit}, CLAIM_LIMITS, now=NOW)


def queries(db: sqlite3.Connection, work: Callable[[], object]) -> int:
    """Return how many SELECT statements `work` runs."""
    ran: list[str] = []
    db.set_trace_callback(ran.append)
    work()
    db.set_trace_callback(None)
    return sum(it.lstrip().startswith("SELECT") for it in ran)


def mailboxes(db: sqlite3.Connection) -> list[tuple[str, int]]:
    """Return the key and the state of each mailbox."""
    return db.execute("SELECT ordering_key, state FROM beneath_mailbox ORDER BY ordering_key").fetchall()


def test_settlement_of_many_keys_runs_as_many_queries_as_of_few(db: sqlite3.Connection) -> None:
    owner = worker(db)

    def settled(keys: int) -> int:
        publish(db, keys, keys=keys)
        settlements = done(claim(db, owner))
        assert len(settlements) == keys
        return queries(db, lambda: settling.settle(db, owner, settlements, now=NOW))

    assert settled(200) == settled(2)
    assert mailboxes(db) == []


@pytest.mark.parametrize("each", [1, 3])
def test_claim_of_many_keys_runs_as_many_queries_as_of_few(db: sqlite3.Connection, each: int) -> None:
    owner = worker(db)

    def claimed(keys: int) -> int:
        publish(db, keys * each, keys=keys)
        claims: list[Claim] = []
        count = queries(db, lambda: claims.extend(claim(db, owner)))
        assert [len(it.deliveries) for it in claims] == [each] * keys
        assert settling.settle(db, owner, done(claims), now=NOW) == []
        return count

    assert claimed(200) == claimed(2)


def test_claim_without_capacity_for_all_leaves_the_later_deliveries_ready(db: sqlite3.Connection) -> None:
    owner = worker(db)
    publish(db, 6, keys=2)
    limits = dataclasses.replace(CLAIM_LIMITS, fetch_bytes=len(b"m0") * 4)
    claims = claiming.claim(db, owner, {"mail": 10}, limits, now=NOW)
    assert [ids([it]) for it in claims] == [["m0", "m2", "m4"], ["m1"]]
    assert settling.settle(db, owner, done(claims), now=NOW) == []
    assert ids(claim(db, owner)) == ["m3", "m5"]


def test_mailbox_left_without_deliveries_is_deleted_by_the_next_claim(db: sqlite3.Connection) -> None:
    owner = worker(db)
    publish(db, 3, keys=3)
    db.execute("DELETE FROM beneath_delivery WHERE mailbox = 'k1'")
    assert ids(claim(db, owner)) == ["m0", "m2"]
    assert mailboxes(db) == [("k0", 1), ("k2", 1)]


def test_settled_mailbox_with_a_later_delivery_is_released_for_any_worker(db: sqlite3.Connection) -> None:
    owner = worker(db)
    publish(db, 3, keys=3)
    claims = claim(db, owner)
    publishing.publish(db, [message("later", key="k1")], 120.0, now=NOW)
    assert settling.settle(db, owner, done(claims), now=NOW) == []
    assert mailboxes(db) == [("k1", 0)]
    assert ids(claim(db, owner)) == ["later"]


def test_settlements_of_other_owners_claims_are_fenced_and_change_nothing(db: sqlite3.Connection) -> None:
    owner = worker(db)
    publish(db, 3, keys=3)
    settlements = done(claim(db, owner))
    outdated = msgspec.structs.replace(settlements[0].claim, fence=settlements[0].claim.fence - 1)
    settlements[0] = msgspec.structs.replace(settlements[0], claim=outdated)
    assert settling.settle(db, owner + 1, settlements[1:2], now=NOW) == settlements[1:2]
    assert settling.settle(db, owner, settlements, now=NOW) == settlements[:1]
    assert mailboxes(db) == [("k0", 1)]


def test_handled_delivery_that_is_not_the_first_is_fenced_and_its_mailbox_released(db: sqlite3.Connection) -> None:
    owner = worker(db)
    publish(db, 2, keys=1)
    (whole,) = claim(db, owner)
    last = msgspec.structs.replace(whole, deliveries=whole.deliveries[1:])
    settlements = done([last])
    assert settling.settle(db, owner, settlements, now=NOW) == settlements
    assert mailboxes(db) == [("k0", 0)]
    assert ids(claim(db, owner)) == ["m0", "m1"]


def test_failed_and_handled_deliveries_of_many_keys_are_settled_in_one_call(db: sqlite3.Connection) -> None:
    owner = worker(db)
    publish(db, 4, keys=4)
    settlements = done(claim(db, owner))
    settlements[2] = msgspec.structs.replace(settlements[2], outcome=Outcome.RETRY, delay=60.0)
    assert settling.settle(db, owner, settlements, now=NOW) == []
    assert mailboxes(db) == [("k2", 0)]
    assert claim(db, owner) == []
    (retried,) = claiming.claim(db, owner, {"mail": 10}, CLAIM_LIMITS, now=NOW + 61)
    assert retried.deliveries[0].failures == 1
