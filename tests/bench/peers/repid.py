"""repid on Redis Streams."""

import asyncio
from typing import Any

import uvloop
from repid import RedisServer, Repid, Router

from tests.bench.protocol import Job, Meter, job, publish_async

CLAIM_EVERY = 30.0
"""Seconds between two recoveries of entries of dead workers; off by default, and then such entries are lost."""


async def run(work: Job) -> None:
    """Publish, or work until killed."""
    app = Repid()
    server = RedisServer(work.url, claim_interval=CLAIM_EVERY)
    app.servers.register_server("default", server, is_default=True)
    async with server.connection():
        if work.role != "work":

            async def publish(event: dict[str, Any]) -> None:
                await app.send_message_json(channel="bench", payload=event, headers={"topic": "handle"})

            # It has no call for a batch, so a backlog is published from many tasks.
            await publish_async(work, publish)
            return
        router = Router()
        meter = Meter(work.count)

        @router.actor(channel="bench")
        async def handle(user_id: str, email: str, name: str, created_at: str, n: int, sent: float) -> None:
            meter.handled(sent)

        app.include_router(router)
        await app.run_worker()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(job()))
