"""procrastinate on PostgreSQL."""

import asyncio
from typing import Any

import uvloop
from procrastinate import App, PsycopgConnector

from tests.bench.protocol import Job, Meter, job, publish_async

CONCURRENCY = 10


async def run(work: Job) -> None:
    """Create its tables, publish, or work until killed."""
    app = App(connector=PsycopgConnector(conninfo=work.url))
    meter = Meter(work.count) if work.role == "work" else None

    @app.task(name="handle")
    async def handle(event: dict[str, Any]) -> None:
        if meter is not None:
            meter.handled(event["sent"])

    async def publish(event: dict[str, Any]) -> None:
        await handle.defer_async(event=event)

    async def publish_many(events: list[dict[str, Any]]) -> None:
        await handle.batch_defer_async(*({"event": event} for event in events))

    async with app.open_async():
        if work.role == "prepare":
            await app.schema_manager.apply_schema_async()
        elif work.role == "work":
            await app.run_worker_async(concurrency=CONCURRENCY, delete_jobs="always")
        else:
            await publish_async(work, publish, publish_many)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(job()))
