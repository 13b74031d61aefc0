"""taskiq on Redis Streams."""

import asyncio
from typing import Any

import uvloop
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from tests.bench.protocol import Job, Meter, job, publish_async


async def run(work: Job) -> None:
    """Publish, or work until killed."""
    broker = RedisStreamBroker(work.url)
    meter = Meter(work.count) if work.role == "work" else None

    @broker.task(task_name="handle")
    async def handle(event: dict[str, Any]) -> None:
        if meter is not None:
            meter.handled(event["sent"])

    broker.is_worker_process = meter is not None
    await broker.startup()
    if meter is not None:
        await run_receiver_task(broker, max_async_tasks=100)
    else:
        # It has no call for a batch, so a backlog is published from many tasks.
        await publish_async(work, handle.kiq)
        await broker.shutdown()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(job()))
