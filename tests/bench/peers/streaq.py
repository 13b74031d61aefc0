"""streaq on Redis Streams."""

import asyncio
from typing import Any

import uvloop
from streaq import Worker

from tests.bench.protocol import Job, Meter, job, publish_async


async def run(work: Job) -> None:
    """Publish, or work until killed."""
    worker: Worker[None] = Worker(work.url)
    meter = Meter(work.count) if work.role == "work" else None

    @worker.task(name="handle", ttl=0)
    async def handle(event: dict[str, Any]) -> None:
        if meter is not None:
            meter.handled(event["sent"])

    if meter is not None:
        await worker.run_async()
        return

    async def publish(event: dict[str, Any]) -> None:
        await handle.enqueue(event)

    async def publish_many(events: list[dict[str, Any]]) -> None:
        await worker.enqueue_many([handle.enqueue(event) for event in events])

    async with worker:
        await publish_async(work, publish, publish_many)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(job()))
