"""`python -m tests.bench.bloat`: measures table sizes and throughput of the queue on PostgreSQL over many messages.

With `--open SECONDS` another transaction keeps all dead rows for that time.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.mq import Consumer, Message, MessageQueue, Outcome, Settlement, Subscription, WorkerInfo
from tests.bench.postgres import PostgresBench

AT_ONCE = 200
KEYS = 500
BODY = b"x" * 250

_SIZES = """
SELECT relname::text, pg_table_size(oid) AS heap, pg_indexes_size(oid) AS indexes,
    (SELECT n_dead_tup FROM pg_stat_user_tables AS s WHERE s.relid = c.oid) AS dead
FROM pg_class AS c WHERE relname IN ('beneath_delivery', 'beneath_mailbox') ORDER BY 1
"""


async def feed(mq: MessageQueue, begin: int, end: int) -> None:
    """Publish messages, every other one with a key."""
    for at in range(begin, end, AT_ONCE):
        now = time.time()
        batch = [
            Message(
                id=f"{n:032}",
                event="Moved" if n % 2 else "Signed",
                body=BODY,
                published_at=now,
                ordering_key=f"key-{n % KEYS}" if n % 2 else None,
            )
            for n in range(at, at + AT_ONCE)
        ]
        await mq.publish(batch)


async def handle(worker: Consumer, count: int) -> None:
    """Fetch and settle `count` deliveries."""
    while count > 0:
        claims = await worker.fetch({"signed": AT_ONCE, "moved": 50}, wait=5)
        done = [
            Settlement(
                claim=claim, delivery=it, outcome=Outcome.DONE, close=claim.ordered and it is claim.deliveries[-1]
            )
            for claim in claims
            for it in claim.deliveries
        ]
        if done:
            await worker.settle(done)
        count -= len(done)


@asynccontextmanager
async def opened(bench: PostgresBench) -> AsyncIterator[tuple[MessageQueue, Consumer]]:
    """Open a queue with an unordered and an ordered subscription."""
    async with bench.opened() as (mq, _):
        names = frozenset(("signed", "moved"))
        subscriptions = [
            Subscription(name="signed", events=frozenset(("Signed",))),
            Subscription(name="moved", events=frozenset(("Moved",)), ordered=True),
        ]
        await mq.declare(subscriptions, [])
        worker = await mq.consumer(WorkerInfo(id="bloat", subscriptions=names), CLAIM_LIMITS)
        yield mq, worker


async def step(mq: MessageQueue, worker: Consumer, begin: int, count: int) -> float:
    """Publish and handle concurrently; return messages per second."""
    worker.renew()
    began = time.perf_counter()
    await asyncio.gather(feed(mq, begin, begin + count), handle(worker, count))
    return count / (time.perf_counter() - began)


async def run(count: int, portion: int, seconds: float) -> None:
    """Measure portion by portion."""
    bench = PostgresBench()
    async with opened(bench) as (mq, worker):
        watching = await asyncpg.connect(bench.url)
        done = 0
        while done < count:
            await report(watching, done := done + portion, await step(mq, worker, done, portion))
        if seconds:
            elsewhere = await asyncpg.connect(bench.url, server_settings={"application_name": "report"})
            await elsewhere.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM beneath_delivery")
            print("a transaction is open elsewhere")  # noqa: T201 - its output is what a bench is for
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                await report(watching, done := done + portion, await step(mq, worker, done, portion))
            print("\n".join(await mq.warnings()))  # noqa: T201
            await elsewhere.close()
            print("it has ended")  # noqa: T201
            for _ in range(5):
                await report(watching, done := done + portion, await step(mq, worker, done, portion))
        await watching.close()


async def report(watching: Any, done: int, rate: float) -> None:  # noqa: ANN401  # asyncpg's
    """Print one line."""
    columns = [
        f"{name[8:]}: {heap / 2**20:6.1f} MB + {indexes / 2**20:6.1f} MB, {dead:>8} dead"
        for name, heap, indexes, dead in await watching.fetch(_SIZES)
    ]
    print(f"{done:>9} messages, {rate:>7,.0f}/s   {'   '.join(columns)}", flush=True)  # noqa: T201


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--count", type=int, default=1_000_000, help="messages")
    parser.add_argument("-p", "--portion", type=int, default=20_000, help="messages between two lines")
    parser.add_argument("--open", type=float, default=0.0, help="seconds with a transaction open elsewhere, afterwards")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.count, arguments.portion, arguments.open))


if __name__ == "__main__":
    main()
