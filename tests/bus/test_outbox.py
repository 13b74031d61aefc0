"""The outbox and its relay: a transaction's events reach a queue elsewhere if and only if it committed."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from bus import BusError, CancelFailed, PublishIndeterminate, PublishRejected
from infra.db import CommitIndeterminate, DatabaseUnavailable
from infra.mq import Message, QueueUnavailable, Subscription
from tests.bus.events import Deposited, Ticked, UserCreated, UserUpdated
from tests.bus.site import Site, opened_site

CLOSE = 0.01
"""Seconds by which SQLite's clock may differ from Python's, as it reads it less precisely."""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with opened_site(tmp_path) as site:
        yield site


async def test_what_is_committed_arrives_and_leaves_the_outbox_and_what_is_rolled_back_does_not(site: Site) -> None:
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


async def test_while_the_queue_is_away_transactions_commit_and_their_events_flow_in_order_when_it_is_back(
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


async def test_ordered_events_pass_through_the_outbox_also_outside_a_transaction(site: Site) -> None:
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
async def test_a_database_that_fails_fails_a_publish_or_a_cancellation_with_an_error_of_the_bus(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[BusError]
) -> None:
    async def fail(*_: object) -> None:
        raise error

    bus = await site.process()
    outbox = bus._publisher._outbox
    assert outbox is not None
    monkeypatch.setattr(outbox, "put", fail)
    monkeypatch.setattr(outbox, "standing", fail)
    with pytest.raises(expected, match=r"Deposited (was not|may or may not have been) published"):
        await bus.publish(Deposited(account="a", amount=1))
    with pytest.raises(CancelFailed):
        await bus.cancel("seven")
    assert bus.metrics.publish_failures == 1
    assert await site.rows() == []


async def test_what_a_dead_process_left_is_swept_by_another(site: Site) -> None:
    doomed, heir = await site.process(), await site.process()
    assert doomed._publisher.relay is not None
    await doomed._publisher.relay.close()  # killed between COMMIT and push
    async with site.db.transaction():
        await doomed.publish(Ticked(1))
        await doomed.publish(Deposited(account="a", amount=2))
    await site.until(site.empty)
    assert (await site.delivered("ticks"), await site.delivered("deposits")) == ([1], [2])
    assert heir.metrics.publish_failures == 0


async def test_a_lost_reply_means_sending_again_and_being_accepted_once(site: Site) -> None:
    bus = await site.process()
    site.mq.lose_replies = 4
    async with site.db.transaction():
        await bus.publish(Ticked(1))
        await bus.publish(Deposited(account="a", amount=2))
    await site.until(site.empty)
    assert (await site.delivered("ticks"), await site.delivered("deposits")) == ([1], [2])


async def test_a_direct_publish_whose_reply_was_lost_can_be_repeated_by_the_id_that_the_error_names(site: Site) -> None:
    bus = await site.process()
    site.mq.lose_replies = 1
    with pytest.raises(PublishIndeterminate) as lost:
        await bus.publish(Ticked(1))
    await bus.publish(Ticked(1), id=lost.value.id)
    assert await site.delivered("ticks") == [1]


async def test_only_what_nobody_else_can_have_sent_is_called_fresh(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # Nobody knows the ids of these, to repeat them with: they need not be remembered.
    await bus.publish_many([Ticked(5), Ticked(6)])
    assert [dedupe for dedupe, _ in sent.values()] == [False] * 2


@pytest.mark.parametrize("outage", [5, 7200], ids=["within the window", "much later"])
@pytest.mark.parametrize("event", [Ticked(1), Deposited(account="a", amount=1)], ids=["pushed", "carried"])
async def test_a_process_that_dies_between_push_and_cleanup_causes_no_second_delivery(
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
    for n in range(10, 13):  # the queue forgets outdated ids with what others publish
        await site.mq.publish([Message(id=f"{n}", event="elsewhere", body=b"x", published_at=1.0, dedupe=True)])
    await site.process()
    await site.until(site.empty)
    listener = "ticks" if isinstance(event, Ticked) else "deposits"
    assert await site.delivered(listener) == [1]


async def test_two_relays_never_mix_the_order_of_a_key(site: Site) -> None:
    one, two = await site.process(), await site.process()
    for n in range(120):
        bus = (one, two)[n % 2]
        async with site.db.transaction():
            await bus.publish(Deposited(account="a", amount=n))
        if n % 10 == 0:
            await site.clock.advance(0.1)
    await site.until(site.empty)
    assert await site.delivered("deposits") == list(range(120))


async def test_what_the_queue_refuses_for_good_stays_visible_and_holds_nobody_up(site: Site) -> None:
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish_many([Ticked(1), UserUpdated(), Ticked(2)])
    async with site.db.transaction():
        await bus.publish(Ticked(3))

    async def only_the_refused() -> bool:
        return await site.rows() == ["UserUpdated"]

    await site.until(only_the_refused)
    assert sorted(await site.delivered("ticks")) == [1, 2, 3]


async def test_a_delayed_event_can_be_cancelled_wherever_it_is_on_its_way(site: Site) -> None:
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


async def test_a_cancellation_outside_of_a_transaction_fails_while_the_queue_is_away(site: Site) -> None:
    bus = await site.process()
    async with site.db.transaction():
        arrived = await bus.publish_delayed(Ticked(1), 3600)
    await site.until(site.empty)
    site.mq.down = True
    with pytest.raises(CancelFailed, match=f"{arrived} was not cancelled: connection refused"):
        await bus.cancel(arrived)
    site.mq.down = False
    assert await bus.cancel(arrived) is True


async def test_a_bus_starts_while_the_queue_is_away_and_catches_up(site: Site) -> None:
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
async def test_due_times_go_by_the_database_until_the_queue_was_reached(site: Site, *, inside: bool) -> None:
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


async def test_events_never_pass_the_listeners_of_a_process_that_is_not_known_yet(site: Site) -> None:
    site.mq.down = True  # but for the registry, which the queue can read
    bus = await site.process()
    for n in range(3):
        async with site.db.transaction():
            await bus.publish(Ticked(n))
        await site.clock.advance(0.1)
    assert await site.rows() == ["clock.ticked"] * 3
    site.mq.down = False
    await site.until(site.empty)
    assert sorted(await site.delivered("ticks")) == [0, 1, 2]


async def test_a_queue_that_comes_back_unusable_is_an_error_in_the_log_once_and_waited_for(site: Site) -> None:
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


async def test_an_event_that_nobody_wants_leaves_no_row(site: Site) -> None:
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish(UserCreated())
    assert bus.metrics.published == 1
    assert await site.rows() == []


async def test_a_process_declares_its_listeners_again_as_long_as_it_lives(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_a_listener_that_the_queue_lost_gets_events_again(site: Site) -> None:
    bus = await site.process()
    await site.mq.retire("ticks")
    await site.clock.advance(0.5)
    await bus.publish(Ticked(1))
    await site.until(lambda: site.subscribed("ticks"))
    await site.clock.advance(2)
    await bus.publish(Ticked(2))
    assert await site.delivered("ticks") == [2]
