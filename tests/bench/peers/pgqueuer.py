"""pgqueuer on PostgreSQL."""

import asyncio
import json
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
import uvloop
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer import Job as PgqueuerJob

from tests.bench.protocol import Job, Meter, job, publish_async

BATCH = 100


async def run(work: Job) -> None:
    """Create its tables, publish, or work until killed."""
    driver = AsyncpgDriver(await asyncpg.connect(work.url))
    queries = Queries(driver)

    async def publish(event: dict[str, Any]) -> None:
        await queries.enqueue("handle", json.dumps(event).encode())

    async def publish_many(events: list[dict[str, Any]]) -> None:
        await queries.enqueue(
            ["handle"] * len(events), [json.dumps(event).encode() for event in events], [0] * len(events)
        )

    if work.role == "prepare":
        await queries.install()
    elif work.role == "work":
        await consume(driver, work)
    else:
        await publish_async(work, publish, publish_many, BATCH)


async def consume(driver: AsyncpgDriver, work: Job) -> None:
    """Work until killed."""
    meter = Meter(work.count)
    application = PgQueuer(driver)

    @application.entrypoint("handle")
    async def handle(claimed: PgqueuerJob) -> None:
        meter.handled(json.loads(claimed.payload)["sent"])

    await application.run(batch_size=BATCH)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(job()))
