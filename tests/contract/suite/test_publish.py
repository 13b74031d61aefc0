"""The contract: publishing, deduplication and transactions."""

import asyncio

import pytest
from msgspec import structs

from infra.mq import MessageQueue, MessageTooLarge, QueueRejected
from tests.contract.acting import (
    consumer,
    declare,
    drain,
    fetch,
    fetch_one,
    finish,
    ids,
    message,
    rolled_back,
    start,
    stats,
    subscription,
)
from tests.contract.harness import Harness, requires


async def test_a_delivery_carries_its_message(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", key="k", published_at=1_699_999_999.25)])
    claim = await fetch_one(worker)
    [delivery] = claim.deliveries
    assert (claim.subscription, claim.ordered, claim.ordering_key) == ("work", False, None)
    assert (delivery.subscription, delivery.message_id, delivery.event) == ("work", "a", "Happened")
    assert (delivery.ordering_key, delivery.body, delivery.published_at) == ("k", b"body of a", 1_699_999_999.25)
    assert (delivery.failures, delivery.deferrals, delivery.takeovers, delivery.crashes) == (0, 0, 0, 0)


@pytest.mark.parametrize("body", [b"", bytes(range(256)) * 400, b"\x00\xff\xfe"], ids=["empty", "100 kB", "no text"])
async def test_a_body_is_opaque(harness: Harness, queue: MessageQueue, body: bytes) -> None:
    worker = await start(harness, queue)
    original = message("a")
    await queue.publish([type(original)(id="a", event=original.event, body=body, published_at=1.5)])
    assert (await fetch_one(worker)).deliveries[0].body == body


async def test_names_and_keys_may_be_any_text(harness: Harness, queue: MessageQueue) -> None:
    name, event, key = "größe.`\"'%s; drop", "Ünïcode:{}\\", "schlüssel \x01 \N{SNOWMAN}"
    await declare(harness, queue, subscription(name, events=(event,), ordered=True))
    await queue.publish([message("ein id", event=event, key=key)])
    claim = await fetch_one(await consumer(queue, name), name)
    assert (claim.subscription, claim.ordering_key, claim.deliveries[0].message_id) == (name, key, "ein id")


async def test_messages_of_one_call_and_of_successive_calls_keep_their_order(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, ordered=True)
    expected = [f"{number:03}" for number in range(250)]
    await queue.publish([message(each, key="k") for each in expected[:230]])
    for each in expected[230:]:
        await queue.publish([message(each, key="k")])
    assert await drain(worker) == expected


async def test_publishing_nothing_does_nothing(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([])
    assert await fetch(worker) == []


async def test_concurrent_publishes_are_all_accepted(harness: Harness) -> None:
    queues = [await harness.queue(), await harness.queue()]
    worker = await start(harness, queues[0], ordered=True)
    calls = [queues[n % 2].publish([message(f"{n}.{part}", key=str(n)) for part in range(3)]) for n in range(40)]
    await asyncio.gather(*calls)
    drained = await drain(worker)
    assert sorted(drained) == sorted(f"{n}.{part}" for n in range(40) for part in range(3))
    for n in range(40):
        assert [it for it in drained if it.startswith(f"{n}.")] == [f"{n}.0", f"{n}.1", f"{n}.2"]


@pytest.mark.parametrize("place", [0, 1, 3], ids=["first", "middle", "last"])
async def test_refused_publish_stores_nothing(harness: Harness, queue: MessageQueue, place: int) -> None:
    await declare(harness, queue, subscription(), subscription("ordered", ordered=True))
    worker = await consumer(queue, "work", "ordered")
    batch = [
        message("a", dedupe=True, key="k"),
        message("b", dedupe=True, due_at=queue.time() + 5),
        message("c", dedupe=True, fresh=True),
    ]
    too_large = structs.replace(message("d", dedupe=True), body=bytes(queue.features.max_body + 1))
    refused = [*batch[:place], too_large, *batch[place:]]
    with pytest.raises(QueueRejected):
        await queue.publish(refused)
    # Messages of other callers in the same round trip are accepted.
    outcomes = await asyncio.gather(
        queue.publish([message("x")]), queue.publish(refused), queue.publish([message("y")]), return_exceptions=True
    )
    assert [type(each) for each in outcomes] == [type(None), MessageTooLarge, type(None)]
    for name in ("work", "ordered"):
        assert sorted(await drain(worker, name)) == ["x", "y"]
    assert [(each.ready, each.scheduled) for each in await queue.stats()] == [(0, 0), (0, 0)]
    assert not await queue.scheduled("b")
    # The queue has not stored the ids of the refused messages either.
    await queue.publish(batch)
    await harness.clock.advance(5)
    for name in ("work", "ordered"):
        assert sorted(await drain(worker, name)) == ["a", "b", "c"]


@requires("transactional")
async def test_refused_publish_leaves_its_transaction_usable(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    too_large = structs.replace(message("b"), body=bytes(queue.features.max_body + 1))
    async with harness.transaction(queue):
        await queue.publish([message("a")])
        with pytest.raises(QueueRejected):
            await queue.publish([message("c"), too_large])
    assert await drain(worker) == ["a"]


async def test_message_without_an_ordering_key_uses_the_mailbox_of_the_empty_key(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish([message("a"), message("b", key=""), message("c")])
    claim = await fetch_one(worker)
    assert ids([claim]) == ["a", "b", "c"]
    assert claim.ordering_key == ""
    assert [it.ordering_key for it in claim.deliveries] == [None, "", None]


async def test_delivery_ids_are_never_reused(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, names=("first", "second"))
    seen: list[int | str] = []
    for number in range(5):
        await queue.publish([message(str(number))])
        for name in ("first", "second"):
            claim = await fetch_one(worker, name)
            seen += [it.id for it in claim.deliveries]
            await finish(worker, claim)
    assert len(set(seen)) == 10


async def test_a_message_with_dedupe_is_accepted_once_within_the_window(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", dedupe=True), message("a", dedupe=True)])
    await queue.publish([message("a", dedupe=True), message("b", dedupe=True)])
    assert await drain(worker) == ["a", "b"]
    await harness.clock.advance(harness.dedupe_window - 1)
    await queue.publish([message("a", dedupe=True)])
    assert await drain(await consumer(queue)) == []


async def test_one_id_of_two_events_is_no_duplicate(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription(events=("One", "Two")))
    await queue.publish([message("a", event="One", dedupe=True)])
    await queue.publish([message("a", event="Two", dedupe=True), message("a", event="One", dedupe=True)])
    await queue.publish([message("b", event=each, dedupe=True) for each in ("One", "Two", "One")])
    assert await drain(await consumer(queue)) == ["a", "a", "b", "b"]


async def test_id_is_accepted_again_after_the_dedupe_window(harness: Harness, queue: MessageQueue) -> None:
    await start(harness, queue)
    await queue.publish([message("a", dedupe=True)])
    await harness.clock.advance(harness.dedupe_window + 1)
    await queue.publish([message("a", dedupe=True)])
    assert await drain(await consumer(queue)) == ["a", "a"]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_message_sent_again_after_the_window_is_distinguished_from_a_new_publish(
    harness: Harness, queue: MessageQueue, *, ordered: bool
) -> None:
    await start(harness, queue, ordered=ordered)
    sent = [structs.replace(message(it, dedupe=True, key=it), accepted_since=queue.time()) for it in "abc"]
    await queue.publish(sent[:2])
    await harness.clock.advance(harness.dedupe_window * 10)
    await queue.publish([message(f"other {n}", dedupe=True) for n in range(3)])  # Deletes expired ids.
    await queue.publish(sent)
    again = ["a", "b"] if queue.features.transactional else []  # No outbox sends messages again.
    drained = await drain(await consumer(queue))
    assert sorted(drained) == sorted(["a", "b", *again, "c", "other 0", "other 1", "other 2"])
    await harness.clock.advance(harness.dedupe_window * 10)
    await queue.publish([structs.replace(sent[0], accepted_since=queue.time()), message("b", dedupe=True)])
    assert sorted(await drain(await consumer(queue))) == ["a", "b"]


async def test_cancelled_id_is_accepted_when_sent_again(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    sent = structs.replace(message("a", dedupe=True, due_at=queue.time() + 5), accepted_since=queue.time())
    await queue.publish([sent])
    assert await queue.cancel("a")
    await queue.publish([sent])
    await harness.clock.advance(5)
    assert await drain(worker) == ["a"]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_id_published_as_fresh_is_remembered_like_any_other(
    harness: Harness, queue: MessageQueue, *, ordered: bool
) -> None:
    worker = await start(harness, queue, ordered=ordered)
    await queue.publish([message("a", dedupe=True, fresh=True)])
    await queue.publish([message("b", dedupe=True, fresh=True), message("c", dedupe=True, fresh=True)])
    for again in "abc":
        await queue.publish([message(again, dedupe=True)])
    await queue.publish([message(again, dedupe=True) for again in "abcd"])
    assert await drain(worker) == ["a", "b", "c", "d"]
    await harness.clock.advance(harness.dedupe_window + 1)
    await queue.publish([message("a", dedupe=True)])
    assert await drain(await consumer(queue)) == ["a"]


async def test_only_messages_accepted_before_are_dropped_from_a_call(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("first"), subscription("second", events=("Happened", "Other")))
    worker = await consumer(queue, "first", "second")
    await queue.publish([message("b", dedupe=True), message("d", dedupe=True, event="Other")])
    await queue.publish([message(it, dedupe=True) for it in "abcbe"])
    await queue.publish([message("a", dedupe=True), message("d", dedupe=True, event="Other"), message("f")])
    assert await drain(worker, "first") == ["b", "a", "c", "e", "f"]
    assert await drain(worker, "second") == ["b", "d", "a", "c", "e", "f"]


async def test_publish_accepts_thousands_of_messages_in_one_call(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription())
    expected = [f"{number:04}" for number in range(4_500)]
    await queue.publish([message(it, dedupe=True, fresh=True) for it in expected])
    await queue.publish([message(it, dedupe=True) for it in [*expected, "another"]])
    assert (await stats(queue)).ready == len(expected) + 1
    assert await drain(await consumer(queue)) == [*expected, "another"]


async def test_id_without_dedupe_is_accepted_again(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a"), message("a")])
    assert await drain(worker) == ["a", "a"]


async def test_dedupe_works_across_processes_and_for_scheduled_messages(harness: Harness) -> None:
    here, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, here)
    await here.publish([message("a", dedupe=True), message("b", dedupe=True, due_at=here.time() + 5)])
    await elsewhere.publish([message("a", dedupe=True), message("b", dedupe=True)])
    await harness.clock.advance(5)
    assert await drain(worker) == ["a", "b"]


@requires("transactional")
async def test_messages_of_a_committed_transaction_exist(harness: Harness) -> None:
    queue, elsewhere = await harness.queue(), await harness.queue()
    worker = await start(harness, queue)
    async with harness.transaction(queue):
        await queue.publish([message("a")])
        await queue.publish([message("b")])
        assert (await stats(elsewhere)).ready == 0
    assert await drain(worker) == ["a", "b"]


@requires("transactional")
async def test_messages_of_a_rolled_back_transaction_never_exist(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    async with rolled_back(harness, queue):
        await queue.publish([message("a"), message("b", due_at=queue.time() + 1)])
    await harness.clock.advance(1)
    assert await fetch(worker) == []
    assert (await stats(queue)).scheduled == 0


@requires("transactional")
async def test_an_id_counts_as_accepted_only_if_its_transaction_commits(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    async with rolled_back(harness, queue):
        await queue.publish([message("a", dedupe=True)])
    async with harness.transaction(queue):
        await queue.publish([message("a", dedupe=True)])
    await queue.publish([message("a", dedupe=True)])
    assert await drain(worker) == ["a"]


@requires("durable")
async def test_published_message_survives_the_end_of_the_process(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("plain"), subscription("ordered", ordered=True, aliases=("old",)))
    await queue.publish([message("a", key="k"), message("b", key="k", due_at=queue.time() + 5)])
    reopened = await harness.reopen()
    worker = await consumer(reopened, "plain", "ordered")
    assert await drain(worker, "plain") == ["a"]
    assert await drain(worker, "old") == ["a"]
    await harness.clock.advance(5)
    assert await drain(worker, "plain") == ["b"]
    assert await drain(worker, "ordered") == ["b"]
