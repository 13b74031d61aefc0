"""The contract: broadcasts and receivers."""

import asyncio

from infra.mq import MessageQueue
from tests.contract.acting import ANSWER, rolled_back, until_done
from tests.contract.harness import Harness, requires


async def test_a_broadcast_reaches_every_other_receiver_once_and_in_order(harness: Harness) -> None:
    here, there, elsewhere = [await harness.queue() for _ in range(3)]
    sender = await here.receiver(origin="here")
    receivers = [await there.receiver(origin="there"), await elsewhere.receiver(origin="elsewhere")]
    await here.broadcast([b"one", b"two"], origin="here")
    await here.broadcast([b"three"], origin="here")
    for receiver in receivers:
        assert await until_done(harness, receiver.receive(2)) == ([b"one", b"two", b"three"], False)
        assert await receiver.receive(0) == ([], False)
    assert await sender.receive(0) == ([], False)


async def test_receiver_gets_broadcasts_of_other_origins_in_its_own_process(
    harness: Harness, queue: MessageQueue
) -> None:
    receiver = await queue.receiver(origin="web")
    await queue.broadcast([b"one"], origin="worker")
    await queue.broadcast([b"own"], origin="web")
    await queue.broadcast([b"two"], origin="worker")
    assert await until_done(harness, receiver.receive(2)) == ([b"one", b"two"], False)


async def test_receiver_gets_no_broadcast_from_before_its_opening(harness: Harness) -> None:
    here, there = await harness.queue(), await harness.queue()
    await here.broadcast([b"before"], origin="here")
    receiver = await there.receiver(origin="there")
    await here.broadcast([b"after"], origin="here")
    assert await until_done(harness, receiver.receive(2)) == ([b"after"], False)


async def test_any_bytes_can_be_broadcast(harness: Harness) -> None:
    here, there = await harness.queue(), await harness.queue()
    receiver = await there.receiver(origin="there")
    frames = [b"", bytes(range(256)), b"\x00" * 5000]
    await here.broadcast(frames, origin="here")
    await here.broadcast([], origin="here")
    assert await until_done(harness, receiver.receive(2)) == (frames, False)


async def test_waiting_receiver_returns_as_soon_as_a_broadcast_arrives(harness: Harness) -> None:
    here, there = await harness.queue(), await harness.queue()
    receiver = await there.receiver(origin="there")
    receiving = asyncio.ensure_future(receiver.receive(60))
    await harness.clock.settle()
    before = harness.clock.time()
    await here.broadcast([b"now"], origin="here")

    async def received() -> tuple[list[bytes], bool]:
        return await receiving

    assert await until_done(harness, received(), step=0.1, answer=ANSWER) == ([b"now"], False)
    assert harness.clock.time() - before < 2


async def test_receive_returns_after_the_wait(harness: Harness, queue: MessageQueue) -> None:
    receiver = await queue.receiver(origin="here")
    before = harness.clock.time()
    assert await until_done(harness, receiver.receive(3), step=0.5, answer=ANSWER) == ([], False)
    assert 3 <= harness.clock.time() - before <= 4


async def test_wake_ends_receive(harness: Harness, queue: MessageQueue) -> None:
    receiver = await queue.receiver(origin="here")
    receiving = asyncio.ensure_future(receiver.receive(60))
    await harness.clock.settle()
    receiver.wake()
    async with asyncio.timeout(5):
        assert await receiving == ([], False)


async def test_closed_receiver_does_not_affect_other_receivers(harness: Harness) -> None:
    here, there = await harness.queue(), await harness.queue()
    closed, receiver = await there.receiver(origin="closed"), await there.receiver(origin="there")
    await closed.close()
    await closed.close()
    await here.broadcast([b"one"], origin="here")
    assert await until_done(harness, receiver.receive(2)) == ([b"one"], False)


@requires("transactional")
async def test_broadcast_of_a_transaction_is_received_if_and_only_if_it_commits(harness: Harness) -> None:
    here, there = await harness.queue(), await harness.queue()
    receiver = await there.receiver(origin="there")
    async with rolled_back(harness, here):
        await here.broadcast([b"phantom"], origin="here")
    async with harness.transaction(here):
        await here.broadcast([b"real"], origin="here")
        assert await receiver.receive(0) == ([], False)
    assert await until_done(harness, receiver.receive(2)) == ([b"real"], False)
