"""The Redis driver on Redis and Valkey, compared with stream calls of redis-py on the same server."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bus.codec import Frame, decode_frame, encode_frame
from bus.events import EventType
from infra.clock import SystemClock
from infra.db import Database
from infra.mq import MessageQueue
from infra.mq.drivers.redis import RedisQueue
from tests.bench.measure import Signed, percentiles
from tests.servers import new_server

ADD = "for i = 1, #ARGV do redis.call('XADD', KEYS[1], '*', 'b', ARGV[i]) end"


class RedisBench:
    """A server of one kind, without persistence."""

    def __init__(self, kind: str) -> None:
        self.name = kind
        self._server = new_server(kind)
        self._decode = EventType(Signed)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[MessageQueue, Database | None]]:
        async with self._client() as client:
            await client.flushall()
        mq = RedisQueue(self._server.url, clock=SystemClock())
        await mq.open()
        yield mq, None
        await mq.close()

    async def bare_consume(self, count: int) -> float | None:
        async with self._client() as client:
            await self._fill(client, count)
            await client.xgroup_create("bare", "w", id="0")
            left = count
            began = time.perf_counter()
            while left:
                answer: Any = await client.xreadgroup("w", "me", {"bare": ">"}, count=100)
                entries = answer[0][1]
                for _, fields in entries:
                    await _handle(self._decode.decode(decode_frame(fields[b"b"]).payload, 1))
                ids = [number for number, _ in entries]
                async with client.pipeline(transaction=False) as pipe:
                    pipe.xack("bare", "w", *ids)
                    pipe.xdel("bare", *ids)
                    await pipe.execute()
                left -= len(ids)
            return time.perf_counter() - began

    async def bare_publish_many(self, count: int) -> float | None:
        async with self._client() as client:
            return await self._fill(client, count)

    async def bare_publish(self, count: int) -> float | None:
        body = self._body()
        async with self._client() as client:
            began = time.perf_counter()
            for _ in range(count):
                await client.xadd("bare", {"b": body})
            return time.perf_counter() - began

    async def bare_publish_together(self, count: int) -> float | None:
        body = self._body()
        async with self._client() as client:
            waiting: list[asyncio.Future[None]] = []
            wanted = asyncio.Event()

            async def flush() -> None:
                while True:
                    await wanted.wait()
                    wanted.clear()
                    batch, waiting[:] = waiting[:], []
                    async with client.pipeline(transaction=False) as pipe:
                        for _ in batch:
                            pipe.xadd("bare", {"b": body})
                        await pipe.execute()
                    for future in batch:
                        future.set_result(None)

            async def publish(times: int) -> None:
                for _ in range(times):
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    waiting.append(future)
                    wanted.set()
                    await future

            flusher = asyncio.create_task(flush())
            began = time.perf_counter()
            await asyncio.gather(*(publish(count // 100) for _ in range(100)))
            seconds = time.perf_counter() - began
            flusher.cancel()
            return seconds

    async def bare_latencies(self, count: int, rate: float) -> tuple[float, float] | None:
        body = self._body()
        taken: list[float] = []
        sent: list[float] = []
        async with self._client() as publisher, self._client() as worker:
            await worker.xgroup_create("bare", "w", id="0", mkstream=True)

            async def work() -> None:
                while len(taken) < count:
                    answer: Any = await worker.xreadgroup("w", "me", {"bare": ">"}, count=100, block=5000)
                    entries = answer[0][1]
                    for _, fields in entries:
                        event = self._decode.decode(decode_frame(fields[b"b"]).payload, 1)
                        taken.append(time.perf_counter() - sent[len(taken)])
                        await _handle(event)
                    ids = [number for number, _ in entries]
                    async with worker.pipeline(transaction=False) as pipe:
                        pipe.xack("bare", "w", *ids)
                        pipe.xdel("bare", *ids)
                        await pipe.execute()

            working = asyncio.create_task(work())
            began = time.perf_counter()
            for n in range(count):
                await asyncio.sleep(max(0.0, began + n / rate - time.perf_counter()))
                sent.append(time.perf_counter())
                await publisher.xadd("bare", {"b": body})
            await working
        return percentiles(taken)

    async def _fill(self, client: Redis, count: int) -> float:
        add = client.register_script(ADD)
        bodies = [self._body()] * 100
        began = time.perf_counter()
        for _ in range(count // 100):
            await add(keys=["bare"], args=bodies)
        return time.perf_counter() - began

    def _body(self) -> bytes:
        payload = self._decode.encode(Signed())
        return encode_frame(Frame("0193f0de-5bcd-7b3e-8000-0123456789ab", "Signed", 1, None, time.time(), {}, payload))

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        client = Redis.from_url(self._server.url, retry=Retry(NoBackoff(), 0), socket_timeout=10, protocol=2)
        await client.flushall()
        yield client
        await client.aclose()


async def _handle(event: object) -> None:
    """Do nothing, as the measured handler."""
