"""Timeouts of transfers: a slow transfer does not time out, a stalled one does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from infra.mq import Message, QueueIndeterminate, QueueUnavailable
from tests import servers
from tests.contract.acting import WORK, consumer, end, fetch, ids, message, subscription
from tests.infra.redis.conftest import Open

SIZE = 2 * 1024 * 1024
TIMEOUT = 0.4
PIECE = 64 * 1024


class SlowWay:
    """A proxy that forwards each piece after a pause, in both directions, until it is told to stall."""

    def __init__(self) -> None:
        self.port = 0
        self.pause = 0.0
        self.moves = asyncio.Event()
        self.moves.set()

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Forward data from `source` to `sink`."""
        with contextlib.suppress(OSError):
            while data := await source.read(PIECE):
                await self.moves.wait()
                await asyncio.sleep(self.pause * len(data) / PIECE)
                sink.write(data)
                await sink.drain()
        sink.transport.abort()


@asynccontextmanager
async def slow_way(port: int) -> AsyncIterator[SlowWay]:
    """Run a slow proxy to the server at this port."""
    way, tasks, writers = SlowWay(), set[asyncio.Task[None]](), set[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", port, limit=PIECE)
        for source, sink in ((reader, to_there), (there, writer)):
            writers.add(sink)
            tasks.add(asyncio.create_task(way.pump(source, sink)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=PIECE)
    way.port = server.sockets[0].getsockname()[1]
    try:
        yield way
    finally:
        server.close()
        way.moves.set()
        for each in writers:
            each.transport.abort()
        way.pause = 0.0
        await asyncio.gather(*tasks)


def large(name: str, size: int = SIZE) -> Message:
    return Message(id=name, event="Happened", body=bytes(size), published_at=1.0)


async def test_large_request_and_answer_may_take_longer_than_the_timeout(
    opened: Open, server: servers.RedisServer
) -> None:
    async with slow_way(server.port) as way:
        queue = await opened(way.url, timeout=TIMEOUT)
        await queue.declare([subscription()], [])
        worker = await consumer(queue)
        # Each piece arrives within the timeout; all of them together take four times as long.
        way.pause = TIMEOUT * 4 / (2 * SIZE / PIECE)
        await queue.publish([large("a"), large("b")])
        claims = await fetch(worker)
        assert ids(claims) == ["a", "b"]
        assert await worker.settle([end(it) for it in claims]) == []
        await queue.close()


@pytest.mark.parametrize("size", [10, SIZE])
async def test_stalled_request_times_out(opened: Open, server: servers.RedisServer, size: int) -> None:
    async with slow_way(server.port) as way:
        queue = await opened(way.url, timeout=TIMEOUT)
        await queue.declare([subscription()], [])
        await queue.publish([large("warm up", size)])  # The first large body costs one more request.
        way.moves.clear()
        async with asyncio.timeout(10):
            with pytest.raises(QueueIndeterminate, match=r"no answer within 0\.4 s"):
                await queue.publish([large("a", size)])
            with pytest.raises(QueueUnavailable):
                await queue.stats()
        way.moves.set()
        await queue.close()


async def test_broadcasts_are_read_in_bounded_answers(opened: Open) -> None:
    here, there = await opened(), await opened()
    receiver = await there.receiver(origin="there")
    frames = [bytes([it]) * (1024 * 1024) for it in range(12)]
    for frame in frames:
        await here.broadcast([frame], origin="here")
    assert await receiver.receive(1) == (frames, False)


async def test_large_message_reaches_a_waiting_worker(opened: Open) -> None:
    queue, elsewhere = await opened(), await opened(poll=30.0)
    await queue.declare([subscription()], [])
    worker = await consumer(elsewhere)
    fetching = asyncio.ensure_future(worker.fetch({WORK: 1}, wait=10))
    await asyncio.sleep(0.1)
    # Larger than the server's output buffer limit for subscribers.
    await queue.publish([large("a", 40 * 1024 * 1024)])
    assert ids(await fetching) == ["a"]
    assert elsewhere._core.link("fetch").connections == 1
    await queue.publish([message("b")])
    assert ids(await worker.fetch({WORK: 1}, wait=10)) == ["b"]
