"""The contract: dead letters."""

import pytest

from infra.mq import DeadLetter, DeadLetterNotFound, MessageQueue, Outcome
from tests.contract.acting import (
    consumer,
    counters,
    declare,
    drain,
    end,
    fetch,
    fetch_one,
    finish,
    ids,
    keyed,
    kill,
    message,
    start,
    stats,
    subscription,
)
from tests.contract.harness import Harness


async def make_dead_letters(
    harness: Harness, queue: MessageQueue, *message_ids: str, name: str = "work"
) -> list[DeadLetter]:
    """Publish messages to one new subscription and let each fail for good in turn; return the dead letters."""
    worker = await start(harness, queue, names=(name,))
    for each in message_ids:
        await queue.publish([message(each)])
        await worker.settle([end(await fetch_one(worker, name), Outcome.DEAD, error=f"ValueError: {each}")])
    await worker.close()
    return await queue.dead_letters(subscription=name)


async def test_dead_letter_keeps_the_message_counters_and_error(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a", key="k", published_at=1_699_999_999.5)])
    await worker.settle([end(await fetch_one(worker), Outcome.RETRY, delay=2, error="first")])
    await harness.clock.advance(2)
    await worker.settle([end(await fetch_one(worker), Outcome.DEAD, error="ValueError: no")])
    [letter] = await queue.dead_letters()
    assert (letter.subscription, letter.message_id, letter.event) == ("work", "a", "Happened")
    assert (letter.ordering_key, letter.body, letter.published_at) == ("k", b"body of a", 1_699_999_999.5)
    assert (letter.error, letter.traceback) == ("ValueError: no", "traceback of ValueError: no")
    assert (letter.failures, letter.crashes, letter.died_at) == (2, 0, queue.time())
    assert await queue.dead_letter(letter.id) == letter


async def test_dead_outcome_without_a_failure_counts_no_failure(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await worker.isolate(await fetch_one(worker))
    await harness.crash(worker)
    worker = await consumer(queue)
    await worker.recover()
    await worker.settle([end(await fetch_one(worker), Outcome.DEAD, error="it killed its worker", charge=False)])
    [letter] = await queue.dead_letters()
    assert (letter.failures, letter.crashes) == (0, 1)


async def test_dead_letters_are_listed_in_the_order_of_their_deaths(harness: Harness, queue: MessageQueue) -> None:
    await make_dead_letters(harness, queue, "b", "a", "c")
    assert [it.message_id for it in await queue.dead_letters()] == ["b", "a", "c"]


async def test_dead_letters_are_listed_in_pages(harness: Harness, queue: MessageQueue) -> None:
    letters = await make_dead_letters(harness, queue, *"abcdefg")
    assert await queue.dead_letters(limit=3) == letters[:3]
    assert await queue.dead_letters(limit=3, after=letters[2].id) == letters[3:6]
    await queue.discard_dead([letters[5].id])
    assert await queue.dead_letters(after=letters[5].id) == letters[6:]
    assert await queue.dead_letters(after=letters[6].id) == []


async def test_dead_letters_are_filtered_by_subscription_and_event(harness: Harness, queue: MessageQueue) -> None:
    for name, event in (("first", "One"), ("second", "Two"), ("third", "Two")):
        await declare(harness, queue, subscription(name, events=(event,)))
    await queue.publish([message("a", event="One"), message("b", event="Two")])
    worker = await consumer(queue, "first", "second", "third")
    for name in ("first", "second", "third"):
        await worker.settle([end(await fetch_one(worker, name), Outcome.DEAD)])
    assert [it.message_id for it in await queue.dead_letters(subscription="first")] == ["a"]
    assert [it.subscription for it in await queue.dead_letters(event="Two")] == ["second", "third"]
    assert await queue.dead_letters(subscription="first", event="Two") == []
    assert await queue.dead_letters(subscription="unknown") == []


async def test_an_unknown_dead_letter_is_not_found(harness: Harness, queue: MessageQueue) -> None:
    [letter] = await make_dead_letters(harness, queue, "a")
    await queue.discard_dead([letter.id])
    for unknown in (letter.id, "999999999", "no-such-id", ""):
        with pytest.raises(DeadLetterNotFound):
            await queue.dead_letter(unknown)


async def test_a_retried_dead_letter_reaches_its_own_subscription_alone(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue, names=("failed", "fine"))
    await queue.publish([message("a", key="k", published_at=1.25)])
    await finish(worker, await fetch_one(worker, "fine"))
    await worker.settle([end(await fetch_one(worker, "failed"), Outcome.DEAD)])
    [letter] = await queue.dead_letters()
    assert await queue.retry_dead([letter.id]) == 1
    assert await queue.dead_letters() == []
    assert await fetch(worker, "fine") == []
    delivery = (await fetch_one(worker, "failed")).deliveries[0]
    assert (delivery.message_id, delivery.body, delivery.ordering_key) == ("a", b"body of a", "k")
    assert (delivery.event, delivery.published_at) == ("Happened", 1.25)


async def test_retried_dead_letter_has_reset_counters(harness: Harness, queue: MessageQueue) -> None:
    worker = await start(harness, queue)
    await queue.publish([message("a")])
    await kill(harness, queue)
    for outcome in (Outcome.RETRY, Outcome.DEFER):
        await worker.settle([end(await fetch_one(worker), outcome)])
    await worker.isolate(await fetch_one(worker))
    await harness.crash(worker)
    worker = await consumer(queue)
    await worker.recover()
    claim = await fetch_one(worker)
    assert counters(claim.deliveries[0]) == (1, 1, 1, 1)
    await worker.settle([end(claim, Outcome.DEAD)])
    await queue.retry_dead([it.id for it in await queue.dead_letters()])
    assert counters((await fetch_one(worker)).deliveries[0]) == (0, 0, 0, 0)


async def test_a_retried_ordered_dead_letter_joins_the_end_of_its_mailbox(
    harness: Harness, queue: MessageQueue
) -> None:
    worker = await start(harness, queue, ordered=True)
    await queue.publish(keyed("a1", "a2"))
    claim = await fetch_one(worker)
    await worker.settle([end(claim, Outcome.DEAD), end(claim, Outcome.RELEASE, nth=1)])
    await queue.retry_dead([it.id for it in await queue.dead_letters()])
    await queue.publish(keyed("a3"))
    assert await drain(worker) == ["a2", "a1", "a3"]


async def test_retry_skips_unknown_dead_letters(harness: Harness, queue: MessageQueue) -> None:
    first, second = await make_dead_letters(harness, queue, "a", "b")
    assert await queue.retry_dead([]) == 0
    assert await queue.retry_dead(["999999999", first.id, "no-such-id", first.id]) == 1
    assert await queue.dead_letters() == [second]
    assert ids(await fetch(await consumer(queue))) == ["a"]


async def test_a_dead_letter_of_a_retired_subscription_stays_and_is_not_retried(
    harness: Harness, queue: MessageQueue
) -> None:
    [letter] = await make_dead_letters(harness, queue, "a")
    await queue.retire("work")
    assert await queue.retry_dead([letter.id]) == 0
    assert await queue.dead_letters(subscription="work") == [letter]


async def test_discard_deletes_dead_letters_and_skips_unknown_ids(harness: Harness, queue: MessageQueue) -> None:
    first, second, third = await make_dead_letters(harness, queue, "a", "b", "c")
    assert await queue.discard_dead([]) == 0
    assert await queue.discard_dead([first.id, "999999999", "no-such-id", third.id, first.id]) == 2
    assert await queue.dead_letters() == [second]
    assert await queue.retry_dead([first.id]) == 0


async def test_renamed_subscription_keeps_its_dead_letters(harness: Harness, queue: MessageQueue) -> None:
    [letter] = await make_dead_letters(harness, queue, "a", name="old")
    await declare(harness, queue, subscription("new", aliases=("old",)))
    for name in ("old", "new"):
        assert [it.subscription for it in await queue.dead_letters(subscription=name)] == ["new"]
    assert (await stats(queue, "new")).dead == 1
    assert await queue.retry_dead([letter.id]) == 1
    assert await drain(await consumer(queue, "new"), "new") == ["a"]


async def test_dead_letters_outlive_retirement_and_follow_every_name(harness: Harness, queue: MessageQueue) -> None:
    await declare(harness, queue, subscription("first"))
    await queue.publish([message("a")])
    assert await queue.retire("first", backlog="dead") == 1
    await declare(harness, queue, subscription("first"))
    assert [it.dead for it in await queue.stats()] == [1]
    await declare(harness, queue, subscription("second", aliases=("first",)))
    assert [(it.name, it.dead) for it in await queue.stats()] == [("second", 1)]
    await queue.retire("second")
    await declare(harness, queue, subscription("second"))
    [letter] = await queue.dead_letters(subscription="second")
    assert [it.dead for it in await queue.stats()] == [1]
    assert await queue.retry_dead([letter.id]) == 1
    assert [(it.ready, it.dead) for it in await queue.stats()] == [(1, 0)]
