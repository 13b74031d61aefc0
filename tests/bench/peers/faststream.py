"""FastStream on Redis Streams: a handler for each message."""

import asyncio
from typing import Any

import uvloop
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub

from tests.bench.protocol import Job, Meter, job, publish_async

AT_ONCE = 100


async def run(work: Job, *, batch: bool = False) -> None:
    """Publish, or work until killed."""
    broker = RedisBroker(work.url, logger=None)
    if work.role != "work":
        await publish_to(broker, work)
        return
    meter = Meter(work.count)
    stream = StreamSub(
        "bench", group="bench", consumer="bench", last_id="0", max_records=AT_ONCE, polling_interval=1000, batch=batch
    )
    if batch:

        @broker.subscriber(stream=stream)
        async def handle_many(events: list[dict[str, Any]]) -> None:
            for event in events:
                meter.handled(event["sent"])

    else:

        @broker.subscriber(stream=stream)
        async def handle(event: dict[str, Any]) -> None:
            meter.handled(event["sent"])

    await FastStream(broker, logger=None).run()


async def publish_to(broker: RedisBroker, work: Job) -> None:
    """Publish one by one, or in pipelines."""
    client = await broker.connect()

    async def publish(event: dict[str, Any]) -> None:
        await broker.publish(event, stream="bench")

    async def publish_many(events: list[dict[str, Any]]) -> None:
        async with client.pipeline(transaction=False) as pipe:
            for event in events:
                await broker.publish(event, stream="bench", pipeline=pipe)
            await pipe.execute()

    await publish_async(work, publish, publish_many, AT_ONCE)
    await broker.stop()


def main(*, batch: bool = False) -> None:
    """Run this process in the event loop that `faststream run` uses where it is installed."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(job(), batch=batch))


if __name__ == "__main__":
    main()
