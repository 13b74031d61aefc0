"""A process of `test_storm.py`: publishes transactions of every kind, or handles messages, without polling.

Run as `python -m tests.infra.postgres.storm publisher|worker URL SEED`; it reads and writes lines of JSON.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.clock import SystemClock
from infra.db import Database, DatabaseError
from infra.db.postgresql_errors import original, sqlstate
from infra.mq import Claim, Consumer, Outcome, QueueUnavailable, Settlement, WorkerInfo
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.postgres import notifier
from tests.infra.mq.acting import message
from tests.infra.postgres.queues import MAIL, POST, WORK

KEYS = ("a", "b", "c", "d")
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "none")
FOREVER = 1e6
TASKS = 8


class Undone(Exception):
    """The application rolls its transaction back."""


class Publishing:
    """A publisher of random transactions, with its accepted messages and failures."""

    def __init__(self, queue: SqlQueue, db: Database, seed: int) -> None:
        self.accepted: list[tuple[str, str, float, float]] = []
        """Message id, ordering key, when its publish began, and when its COMMIT had returned."""

        self.failures: Counter[str] = Counter()
        self._queue = queue
        self._db = db
        self._rng = random.Random(seed)
        self._seed = seed
        self._count = 0

    async def go_on(self, until: float) -> None:
        """Publish one transaction after another."""
        while time.monotonic() < until:
            self._count += 1
            name = f"{self._seed}.{self._count}"
            keys = self._rng.sample(KEYS, self._rng.randint(1, 3))
            ids = {f"{name}-{key}": key for key in keys}
            try:
                began = await self._publish(ids)
            except Undone:
                self.failures["undone"] += 1
            except (DBAPIError, DatabaseError, QueueUnavailable) as error:
                self.failures[sqlstate(original(error)) or type(error).__name__] += 1
            else:
                now = time.monotonic()
                self.accepted += [(id_, key, began, now) for id_, key in ids.items()]
            await asyncio.sleep(self._rng.choice((0, 0.001, 0.02)))

    async def _publish(self, ids: dict[str, str]) -> float:
        messages = [message(id_, key=key) for id_, key in ids.items()]
        level = self._rng.choice(LEVELS)
        if level == "none":
            began = time.monotonic()
            await self._queue.publish(messages)
            return began
        async with self._db.transaction() as tx:
            await tx.session.execute(text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
            row = {"id": self._rng.randint(1, 20)}
            await tx.session.execute(text("UPDATE thing SET changes = changes + 1 WHERE id = :id"), row)
            began = time.monotonic()
            await self._queue.publish(messages)
            await asyncio.sleep(self._rng.choice((0, 0, 0, 0.001, 0.03)))
            if self._rng.random() < 0.1:
                raise Undone
        return began


async def publish(url: str, seed: int) -> None:
    """Publish for the seconds given by each line of standard input; print the accepted messages and the failures."""
    db = Database(f"{url}?pool_size={TASKS}")
    await db.open()
    queue = SqlQueue(db, clock=SystemClock(), registry_ttl=0)
    await queue.open()
    while line := await asyncio.to_thread(sys.stdin.readline):
        publishing = Publishing(queue, db, random.Random(f"{seed} {line}").randrange(1 << 32))
        until = time.monotonic() + json.loads(line)
        await asyncio.gather(*(publishing.go_on(until) for _ in range(TASKS)))
        _tell({"accepted": publishing.accepted, "failures": publishing.failures})
    await queue.close()
    await db.close()


async def work(url: str, seed: int) -> None:
    """Handle until standard input ends; then print subscription, key, fence and message id of all handled messages."""
    db = Database(f"{url}?pool_size=2")
    await db.open()
    queue = SqlQueue(db, clock=SystemClock(), registry_ttl=0, lease=FOREVER, longest_silence=FOREVER)
    await queue.open()
    worker = await queue.consumer(
        WorkerInfo(id=f"storm-{seed}", subscriptions=frozenset((WORK, MAIL, POST))), CLAIM_LIMITS
    )
    handled: list[tuple[str, str | None, int, str]] = []
    working = asyncio.ensure_future(_work_off(worker, handled, random.Random(seed)))
    _tell("ready")
    await asyncio.to_thread(sys.stdin.read)
    working.cancel()
    await asyncio.wait([working])
    if not working.cancelled():
        working.result()
    _tell(handled)
    await queue.close()
    await db.close()


async def _work_off(worker: Consumer, handled: list[tuple[str, str | None, int, str]], rng: random.Random) -> None:
    while True:
        claims = await worker.fetch(dict.fromkeys((WORK, MAIL, POST), rng.randint(1, 10)), wait=FOREVER)
        await asyncio.sleep(rng.choice((0, 0, 0.002)))
        settlements = [it for claim in claims for it in _settlements(claim, rng)]
        handled += [
            (it.claim.subscription, it.delivery.ordering_key, it.claim.fence, it.delivery.message_id)
            for it in settlements
            if it.outcome is Outcome.DONE
        ]
        if fenced := await worker.settle(settlements):
            raise AssertionError(f"no other worker may own {fenced}")


def _settlements(claim: Claim, rng: random.Random) -> list[Settlement]:
    """Return settlements: most are done; some retry or release, which also ends the rest of the claim."""
    found: list[Settlement] = []
    for delivery in claim.deliveries:
        outcome = rng.choices((Outcome.DONE, Outcome.RETRY, Outcome.RELEASE), (0.97, 0.02, 0.01))[0]
        delay = rng.choice((0.0, 0.01)) if outcome is Outcome.RETRY else 0.0
        last = outcome is not Outcome.DONE or delivery is claim.deliveries[-1]
        found.append(Settlement(claim=claim, delivery=delivery, outcome=outcome, delay=delay, close=last))
        if last:
            break
    return found


def _tell(what: Any) -> None:  # noqa: ANN401  # whatever JSON can say
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run as publisher or worker, as the command line says."""
    role, url, seed = sys.argv[1:]
    # Without polling, a missed notification strands its delivery.
    notifier.POLL_INTERVAL = FOREVER
    asyncio.run((publish if role == "publisher" else work)(url, int(seed)))


if __name__ == "__main__":
    main()
