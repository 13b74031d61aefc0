"""The outbox and its relay: a transaction's events reach a remote queue if and only if it committed."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from bus import BusError, CancelFailed, PublishIndeterminate, PublishRejected
from bus.publishing.outbox_dispatch import OutboxDispatch
from infra.db import CommitIndeterminate, DatabaseUnavailable
from infra.mq import Message, QueueUnavailable, Subscription
from tests.bus.events import Deposited, Ticked, UserCreated, UserUpdated
from tests.bus.site import Site, opened_site

CLOSE = 0.01
"""Seconds by which SQLite's time may differ from Python's: SQLite reads the clock less precisely."""


@pytest.fixture
async def site(migrated_copy: Path) -> AsyncIterator[Site]:
    async with opened_site(migrated_copy) as site:
        yield site


async def test_relay_sends_committed_events_only_and_empties_the_outbox(site: Site) -> None:
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish_many([Ticked(1), Ticked(2)])
        assert await site.delivered("ticks") == []
    with pytest.raises(ZeroDivisionError):
        async with site.db.transaction():
            await bus.publish(Ticked(3))
            raise ZeroDivisionError
    await site.until(site.empty)
    assert await site.delivered("ticks") == [1, 2]


async def test_transactions_commit_while_the_queue_is_down_and_events_follow_in_order(
    site: Site,
) -> None:
    bus = await site.process()
    site.mq.down = True
    for n in range(25):
        async with site.db.transaction():
            await bus.publish(Ticked(n))
            await bus.publish(Deposited(account="a", amount=n))
    with pytest.raises(PublishRejected, match="connection refused"):
        await bus.publish(Ticked(99))
    await site.clock.advance(30)
    assert len(await site.rows()) == 50
    site.mq.down = False
    await site.until(site.empty)
    assert sorted(await site.delivered("ticks")) == list(range(25))
    assert await site.delivered("deposits") == list(range(25))


async def test_ordered_events_use_the_outbox_even_outside_a_transaction(site: Site) -> None:
    bus = await site.process()
    site.mq.down = True
    await bus.publish(Deposited(account="a", amount=1))
    assert await site.rows() == ["Deposited"]
    site.mq.down = False
    await bus.publish(Deposited(account="a", amount=2))
    await site.until(site.empty)
    assert await site.delivered("deposits") == [1, 2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OperationalError("INSERT", None, Exception("disk I/O error")), PublishRejected),
        (DatabaseUnavailable("the disk is full"), PublishRejected),
        (CommitIndeterminate("the connection was lost"), PublishIndeterminate),
    ],
    ids=["unmapped", "unavailable", "indeterminate"],
)
async def test_database_failure_in_publish_or_cancel_raises_a_bus_error(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[BusError]
) -> None:
    async def fail(*_: object) -> None:
        raise error

    bus = await site.process()
    dispatch = bus._publisher.dispatch
    assert isinstance(dispatch, OutboxDispatch)
    monkeypatch.setattr(dispatch.outbox, "put", fail)
    monkeypatch.setattr(dispatch.outbox, "state_of", fail)
    with pytest.raises(expected, match=r"Deposited (was not|may or may not have been) published"):
        await bus.publish(Deposited(account="a", amount=1))
    with pytest.raises(CancelFailed):
        await bus.cancel("seven")
    assert bus.metrics.publish_failures == 1
    assert await site.rows() == []


async def test_another_process_sends_the_outbox_rows_of_a_dead_process(site: Site) -> None:
    killed, successor = await site.process(), await site.process()
    assert killed._publisher.relay is not None
    await killed._publisher.relay.close()  # killed between COMMIT and push
    async with site.db.transaction():
        await killed.publish(Ticked(1))
        await killed.publish(Deposited(account="a", amount=2))
    await site.until(site.empty)
    assert (await site.delivered("ticks"), await site.delivered("deposits")) == ([1], [2])
    assert successor.metrics.publish_failures == 0


async def test_message_resent_after_a_lost_reply_is_accepted_once(site: Site) -> None:
    bus = await site.process()
    site.mq.lose_replies = 4
    async with site.db.transaction():
        await bus.publish(Ticked(1))
        await bus.publish(Deposited(account="a", amount=2))
    await site.until(site.empty)
    assert (await site.delivered("ticks"), await site.delivered("deposits")) == ([1], [2])


async def test_direct_publish_with_lost_reply_can_be_retried_by_the_errors_id(site: Site) -> None:
    bus = await site.process()
    site.mq.lose_replies = 1
    with pytest.raises(PublishIndeterminate) as lost:
        await bus.publish(Ticked(1))
    await bus.publish(Ticked(1), id=lost.value.id)
    assert await site.delivered("ticks") == [1]


async def test_only_direct_publishes_with_a_generated_id_are_marked_fresh(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await site.process()
    sent: dict[str, tuple[bool, bool]] = {}

    async def publish(messages: Sequence[Message]) -> None:
        sent.update({each.id: (each.dedupe, each.fresh) for each in messages})

    monkeypatch.setattr(site.mq, "publish", publish)
    await bus.publish(Ticked(1))
    assert list(sent.values()) == [(True, True)]
    sent.clear()
    await bus.publish(Ticked(2), id="chosen")
    async with site.db.transaction():
        await bus.publish(Ticked(3))
        await bus.publish_many([Ticked(4), Deposited(account="a", amount=1)])
    await site.until(site.empty)
    assert list(sent.values()) == [(True, False)] * 4
    sent.clear()
    # The caller of `publish_many` never sees the ids, so the queue need not remember them.
    await bus.publish_many([Ticked(5), Ticked(6)])
    assert [dedupe for dedupe, _ in sent.values()] == [False] * 2


@pytest.mark.parametrize("outage", [5, 7200], ids=["within the window", "much later"])
@pytest.mark.parametrize("event", [Ticked(1), Deposited(account="a", amount=1)], ids=["pushed", "relayed"])
async def test_process_death_between_push_and_cleanup_causes_no_second_delivery(
    site: Site, monkeypatch: pytest.MonkeyPatch, event: Ticked | Deposited, outage: float
) -> None:
    bus = await site.process()
    relay = bus._publisher.relay
    assert relay is not None
    pushed = asyncio.Event()

    async def die(*_: object) -> None:
        pushed.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(relay._outbox, "remove", die)
    async with site.db.transaction():
        await bus.publish(event)
    await site.until(pushed.is_set)
    await bus._supervisor.close()
    await site.clock.advance(outage)
    for n in range(10, 13):  # the queue deletes expired ids when messages are published
        await site.mq.publish([Message(id=f"{n}", event="elsewhere", body=b"x", published_at=1.0, dedupe=True)])
    await site.process()
    await site.until(site.empty)
    listener = "ticks" if isinstance(event, Ticked) else "deposits"
    assert await site.delivered(listener) == [1]


async def test_two_relays_keep_the_order_of_each_ordering_key(site: Site) -> None:
    one, two = await site.process(), await site.process()
    for n in range(120):
        bus = (one, two)[n % 2]
        async with site.db.transaction():
            await bus.publish(Deposited(account="a", amount=n))
        if n % 10 == 0:
            await site.clock.advance(0.1)
    await site.until(site.empty)
    assert await site.delivered("deposits") == list(range(120))


async def test_permanently_rejected_message_stays_visible_and_does_not_block_others(site: Site) -> None:
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish_many([Ticked(1), UserUpdated(), Ticked(2)])
    async with site.db.transaction():
        await bus.publish(Ticked(3))

    async def only_the_refused() -> bool:
        return await site.rows() == ["UserUpdated"]

    await site.until(only_the_refused)
    assert sorted(await site.delivered("ticks")) == [1, 2, 3]


async def test_delayed_event_can_be_cancelled_in_the_outbox_and_in_the_queue(site: Site) -> None:
    bus = await site.process()
    async with site.db.transaction():
        arrived = await bus.publish_delayed(Ticked(1), 3600)
    await site.until(site.empty)
    site.mq.down = True
    async with site.db.transaction():
        waiting = await bus.publish_delayed(Ticked(2), 3600)
        kept = await bus.publish_delayed(Ticked(3), 3600)
    assert await site.cancel(bus, waiting) is True
    assert await bus.cancel(waiting) is False
    async with site.db.transaction():
        assert await bus.cancel(arrived) is True
    site.mq.down = False
    await site.until(site.empty)
    assert [await site.mq.scheduled(each) for each in (arrived, waiting, kept)] == [False, False, True]


async def test_cancel_outside_a_transaction_fails_while_the_queue_is_down(site: Site) -> None:
    bus = await site.process()
    async with site.db.transaction():
        arrived = await bus.publish_delayed(Ticked(1), 3600)
    await site.until(site.empty)
    site.mq.down = True
    with pytest.raises(CancelFailed, match=f"{arrived} was not cancelled: connection refused"):
        await bus.cancel(arrived)
    site.mq.down = False
    assert await bus.cancel(arrived) is True


async def test_bus_starts_while_the_queue_is_down_and_sends_its_events_later(site: Site) -> None:
    site.mq.down = True
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish(Ticked(1))
    await site.clock.advance(10)
    assert await site.rows() == ["clock.ticked"]
    site.mq.down = False
    await site.until(site.empty)
    assert await site.delivered("ticks") == [1]


@pytest.mark.parametrize("inside", [True, False], ids=["transaction", "no transaction"])
async def test_due_times_use_the_database_clock_until_the_queue_is_reached(site: Site, *, inside: bool) -> None:
    site.mq.down = site.mq.unreached = True
    site.clock.time = lambda: 3600.0  # type: ignore[method-assign]  # a wall clock that is wrong by decades
    bus = await site.process()
    before = time.time()
    if inside:
        async with site.db.transaction():
            message_id = await bus.publish_delayed(Deposited(account="a", amount=1), 60)
    else:
        message_id = await bus.publish_delayed(Deposited(account="a", amount=1), 60)
    async with site.db.read() as session:
        due_at = float(await session.scalar(text("SELECT due_at FROM beneath_outbox")))
    assert before + 60 - CLOSE <= due_at <= time.time() + 60 + CLOSE
    assert await site.cancel(bus, message_id) is True
    assert "Deposited" not in await site.rows()


async def test_outbox_rows_wait_until_the_listeners_of_their_process_are_declared(site: Site) -> None:
    site.mq.down = True  # the registry can still be read
    bus = await site.process()
    for n in range(3):
        async with site.db.transaction():
            await bus.publish(Ticked(n))
        await site.clock.advance(0.1)
    assert await site.rows() == ["clock.ticked"] * 3
    site.mq.down = False
    await site.until(site.empty)
    assert sorted(await site.delivered("ticks")) == [0, 1, 2]


async def test_rejected_queue_connection_is_logged_once_and_retried(site: Site) -> None:
    site.mq.down = True
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish(Ticked(1))
    site.mq.refusal = "the password is wrong"
    site.mq.down = False
    with capture_logs() as logs:
        await site.clock.advance(10)
    errors = [(it["event"], it["error"]) for it in logs if it["log_level"] == "error"]
    assert errors == [("queue connection rejected", "the password is wrong")]
    assert await site.rows() == ["clock.ticked"]
    site.mq.refusal = ""
    await site.until(site.empty)
    assert await site.delivered("ticks") == [1]


async def test_event_without_subscription_leaves_no_outbox_row(site: Site) -> None:
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish(UserCreated())
    assert bus.metrics.published == 1
    assert await site.rows() == []


async def test_running_process_declares_its_listeners_repeatedly(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    declared: list[list[str]] = []
    failures = 2

    async def declare(subscriptions: Collection[Subscription], _broadcasts: Collection[str]) -> None:
        nonlocal failures
        if declared and failures:
            failures -= 1
            raise QueueUnavailable("connection refused")
        declared.append(sorted(each.name for each in subscriptions))

    monkeypatch.setattr(site.mq, "declare", declare)
    await site.process()
    await site.until(lambda: len(declared) == 4)
    assert declared == [["deposits", "ticks", "updates"]] * 4
    assert failures == 0


async def test_subscription_that_the_queue_lost_is_declared_again(site: Site) -> None:
    bus = await site.process()
    await site.mq.retire("ticks")
    await site.clock.advance(0.5)
    await bus.publish(Ticked(1))
    await site.until(lambda: site.subscribed("ticks"))
    await site.clock.advance(2)
    await bus.publish(Ticked(2))
    assert await site.delivered("ticks") == [2]
