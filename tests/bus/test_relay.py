"""The relay in edge cases: no row starves, is sent twice without a failure, blocks its group, or gets lost."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from bus import Bus, CancelFailed
from bus.publishing.broadcast_relay import MAX_FRAMES
from bus.publishing.outbox import GROUP, GROUP_BYTES, OUTBOX, Outbox
from bus.publishing.outbox_entries import Entry, EntryKind
from bus.publishing.relay import LEASE
from bus.publishing.relay_lease import RelayLease
from infra.clock import FakeClock
from infra.db import Database
from infra.mq import Message, QueueIndeterminate, QueueRejected, QueueUnavailable
from tests.bus.events import Deposited, Ticked, UserCreated
from tests.bus.site import RemoteQueue, Site, opened_site


class WatchedQueue(RemoteQueue):
    """A remote queue that records its calls, and that delays or fails chosen calls."""

    def __init__(self, *, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.calls: list[list[str]] = []
        """The message ids of each publish, and `cancel ID` for each cancellation."""

        self.sizes: list[int] = []
        self.before: Callable[[Sequence[Message]], None] = lambda _messages: None
        self.held: dict[str, asyncio.Event] = {}
        """By event, or `cancel`: calls wait for this before they take effect."""

        self.holding: set[str] = set()

        self.cancel_fails = False
        self.sent_frames: list[bytes] = []

    async def publish(self, messages: Sequence[Message]) -> None:
        self.before(messages)
        for each in messages:
            if each.event in self.held:
                self.holding.add(each.event)
                await self.held[each.event].wait()
        self.calls.append([each.id for each in messages])
        self.sizes.append(sum(len(each.body) for each in messages))
        await super().publish(messages)

    async def cancel(self, message_id: str) -> bool:
        if self.cancel_fails:
            raise QueueUnavailable("busy")
        if "cancel" in self.held:
            self.holding.add("cancel")
            await self.held["cancel"].wait()
        self.calls.append([f"cancel {message_id}"])
        return await super().cancel(message_id)

    async def broadcast(self, frames: Sequence[bytes], *, origin: str) -> None:
        self._answer()
        self.sent_frames += frames
        await super().broadcast(frames, origin=origin)

    @property
    def ids(self) -> list[str]:
        return [each for call in self.calls for each in call]


class WatchedSite(Site):
    mq: WatchedQueue


@pytest.fixture
async def site(migrated_copy: Path) -> AsyncIterator[Site]:
    async with opened_site(migrated_copy, WatchedQueue) as site:
        yield site


def watched(site: Site) -> WatchedQueue:
    assert isinstance(site.mq, WatchedQueue)
    return site.mq


async def commit(site: Site, bus: Bus, *events: object) -> None:
    async with site.db.transaction():
        await bus.publish_many(events)


async def kinds(site: Site) -> list[tuple[str, str]]:
    async with site.db.read() as session:
        rows = (await session.execute(text("SELECT kind, coalesce(error, '') FROM beneath_outbox ORDER BY id"))).all()
    return [(str(kind), str(error)) for kind, error in rows]


async def waiting_ids(site: Site) -> list[str]:
    async with site.db.read() as session:
        return list((await session.scalars(text("SELECT message_id FROM beneath_outbox ORDER BY id"))).all())


async def cancel_unclaimed(site: Site, bus: Bus, message_id: str) -> None:
    """Cancel an event in a transaction, at a moment when the relay has claimed no row."""
    claimed = text("SELECT 1 FROM beneath_outbox WHERE sending IS NOT NULL")
    while True:
        async with site.db.transaction() as transaction:  # the write lock keeps the relay from claiming rows
            if not (await transaction.session.scalars(claimed)).all():
                assert await bus.cancel(message_id) is True
                assert await bus.cancel(message_id) is False
                return
        await site.clock.advance(0.1)


async def insert(
    site: Site, count: int, *, kind: str, key: str | None = None, size: int = 1, first: int = 0, name: str = ""
) -> None:
    """Insert outbox rows as if a process had died long ago and left them."""
    async with site.db.transaction() as transaction:
        await transaction.session.execute(
            OUTBOX.insert(),
            [
                {
                    "kind": kind,
                    "message_id": f"{name or kind}-{n}",
                    "event": "clock.ticked" if key is None else "Deposited",
                    "ordering_key": key,
                    "published_at": 1.0,
                    "created_at": 1.0,
                    "body": b"x" * size,
                }
                for n in range(first, first + count)
            ],
        )


# --- no kind of row blocks another ------------------------------------------------------------------------------------


async def test_hanging_push_does_not_delay_ordered_events_or_broadcasts(site: Site) -> None:
    bus = await site.process()
    mq = watched(site)
    mq.held["clock.ticked"] = asyncio.Event()
    await commit(site, bus, Ticked(1))
    await commit(site, bus, Deposited(account="a", amount=2))
    relay = bus._publisher.relay
    assert relay is not None
    await mq.declare([], ["heard"])
    relay.broadcast([("unheard", b"lost"), ("heard", b"frame")])
    await site.until(lambda: mq.sent_frames == [b"frame"] and len(mq.calls) == 1)
    assert await site.delivered("deposits") == [2]
    mq.held["clock.ticked"].set()
    await site.until(site.empty)


async def test_hanging_ordered_event_does_not_delay_a_push(site: Site) -> None:
    bus = await site.process()
    mq = watched(site)
    mq.held["Deposited"] = asyncio.Event()
    await commit(site, bus, Deposited(account="a", amount=2))
    await commit(site, bus, Ticked(1))
    await site.until(lambda: len(mq.calls) == 1)
    assert await site.delivered("ticks") == [1]
    mq.held["Deposited"].set()
    await site.until(site.empty)


async def test_rows_of_every_kind_are_sent_in_order_and_in_bounded_groups(site: Site) -> None:
    def fail(_messages: Sequence[Message]) -> None:
        raise QueueUnavailable("busy")

    mq = watched(site)
    mq.before = fail
    await insert(site, 3 * GROUP, kind="publish", key="a")
    await insert(site, 3 * GROUP, kind="direct")
    relay = (await site.process())._publisher.relay
    assert relay is not None
    await site.until(lambda: relay._last_leftover > 0)  # from now on the relay sends these unordered rows
    await insert(site, 1, kind="cancel")
    relay._ordered_sender.group = relay._leftover_sender.group = GROUP
    mq.before = lambda _messages: None
    await site.until(site.empty)
    assert max(len(each) for each in mq.calls) == GROUP
    heads = [each[0].partition("-")[0] for each in mq.calls if not each[0].startswith("cancel")]
    assert (heads.count("publish"), heads.count("direct")) == (3, 3)
    assert ["cancel cancel-0"] in mq.calls
    assert [each for each in mq.ids if each.startswith("publish")] == [f"publish-{n}" for n in range(3 * GROUP)]


@pytest.mark.parametrize("stuck", ["cancel", "Deposited", "clock.ticked"])
@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_stuck_rows_of_one_kind_do_not_block_other_kinds(site: Site, stuck: str, how: str) -> None:
    def fail(messages: Sequence[Message]) -> None:
        if any(each.event == stuck for each in messages):
            raise QueueUnavailable("busy")

    mq = watched(site)
    if how == "hangs":
        mq.held[stuck] = asyncio.Event()
    else:
        mq.before, mq.cancel_fails = fail, stuck == "cancel"
    kinds_of = {"cancel": "cancel", "Deposited": "publish", "clock.ticked": "direct"}
    await insert(site, 3, kind=kinds_of[stuck], key="a" if stuck == "Deposited" else None)
    await site.process()
    await site.clock.advance(5)
    for name, kind in kinds_of.items():
        if name != stuck:  # these rows are newer than the stuck rows
            await insert(site, 50, kind=kind, key="a" if name == "Deposited" else None, first=3)

    async def only_the_stuck() -> bool:
        return [kind for kind, _ in await kinds(site)] == [kinds_of[stuck]] * 3

    await site.until(only_the_stuck)
    mq.before, mq.cancel_fails = lambda _messages: None, False
    for each in mq.held.values():
        each.set()
    await site.until(site.empty)


@pytest.mark.parametrize("key", [None, "a"])
async def test_stuck_cancellation_blocks_only_its_id_and_ordering_key(site: Site, key: str | None) -> None:
    mq = watched(site)
    mq.cancel_fails = True
    await insert(site, 1, kind="cancel")
    await insert(site, 1, kind="publish", key=key, name="cancel")  # published again with the cancelled id
    await insert(site, 1, kind="publish", key="a")
    await insert(site, 2, kind="publish", key="b", first=1)
    await site.process()
    held_up = ["cancel-0"] if key is None else ["cancel-0", "publish-0"]

    async def only_held_up_rows() -> bool:
        return [each for each in await waiting_ids(site) if each not in held_up] == []

    await site.until(only_held_up_rows)
    await site.clock.advance(3)
    assert sorted(set(await waiting_ids(site))) == held_up
    mq.cancel_fails = False
    await site.until(site.empty)
    ordered = [each for each in mq.ids if each in held_up]
    assert ordered == held_up


async def test_group_is_bounded_in_bytes_and_a_larger_row_is_sent_alone(site: Site) -> None:
    await insert(site, 9, kind="publish", key="a", size=GROUP_BYTES // 3)
    await insert(site, 2, kind="direct", size=3 * GROUP_BYTES)
    await site.process()
    await site.until(site.empty)
    mq = watched(site)
    assert sorted(map(len, mq.calls)) == [1, 1, 3, 3, 3]
    assert max(mq.sizes) == 3 * GROUP_BYTES  # a row above the limit is sent alone


async def test_relay_queries_do_not_scan_the_outbox(site: Site) -> None:
    outbox = Outbox(site.db, site.clock)
    plans = []
    for read in (
        outbox.pending,
        lambda: outbox.cancellations(GROUP),
        lambda: outbox.ordered(GROUP),
        lambda: outbox.leftover(GROUP, 10),
    ):
        statements = await recorded(site.db, read)
        for statement in statements:
            async with site.db.read() as session:
                connection = await session.connection()
                rows = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement[0]}", statement[1])).all()
            plans += [str(row[-1]) for row in rows]
    assert plans
    assert any("ix_beneath_outbox_kind" in each for each in plans)
    assert [each for each in plans if each.startswith(("SCAN beneath_outbox", "SCAN earlier"))] == []


async def test_two_processes_relay_ordered_rows_once_and_in_order(site: Site) -> None:
    one, two = await site.process(), await site.process()
    for n in range(60):
        await commit(site, (one, two)[n % 2], Deposited(account="a", amount=n))
    await site.until(site.empty)
    assert await site.delivered("deposits") == list(range(60))


# --- nothing is sent twice without a failure --------------------------------------------------------------------------


async def test_push_that_waited_too_long_is_sent_from_its_row_only(site: Site) -> None:
    one, two = await site.process(), await site.process()
    mq = watched(site)
    mq.held["clock.ticked"] = stuck = asyncio.Event()
    await commit(site, one, Ticked(0))
    await site.clock.advance(0.1)
    for n in range(1, 6):
        await commit(site, one, Ticked(n))
    assert mq.calls == []
    del mq.held["clock.ticked"]
    # The push of the first process hangs; the second process finds, sends and deletes the rows.
    await site.until(site.empty)
    sent_by_two = len(mq.ids)
    assert sent_by_two == 6
    stuck.set()
    await site.clock.advance(10)
    assert len(mq.ids) == 7  # the message whose push hung; the queue dropped it as a duplicate
    assert sorted(await site.delivered("ticks")) == list(range(6))
    assert two.metrics.publish_failures == 0


async def test_close_waits_until_the_rows_of_sent_messages_are_deleted(site: Site) -> None:
    bus = await site.process()
    mq = watched(site)
    mq.held = {"clock.ticked": asyncio.Event(), "Deposited": asyncio.Event()}
    await commit(site, bus, Ticked(1), Deposited(account="a", amount=1))
    await site.until(lambda: len(mq.holding) == 2)
    closing = asyncio.create_task(bus.close())
    await site.clock.advance(0.1)
    assert not closing.done()
    for each in mq.held.values():
        each.set()
    await site.until(closing.done)
    assert len(mq.ids) == 2
    assert await site.rows() == []


@pytest.mark.parametrize("event", [Ticked(1), Deposited(account="a", amount=1)], ids=["pushed", "relayed"])
async def test_failed_row_deletion_does_not_resend_the_message(
    site: Site, monkeypatch: pytest.MonkeyPatch, event: object
) -> None:
    bus = await site.process()
    relay = bus._publisher.relay
    assert relay is not None
    remove = relay._outbox.remove
    failures = 5

    async def fail(entries: Sequence[Entry]) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError("disk")
        await remove(entries)

    monkeypatch.setattr(relay._outbox, "remove", fail)
    await commit(site, bus, event)
    await site.until(site.empty)
    await bus.close()  # lets every loop finish its work
    assert failures == 0
    assert len(watched(site).ids) == 1


# --- a rejected row blocks no other row -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [QueueRejected("no"), OverflowError("too large"), ValueError("bad"), RuntimeError("bug"), KeyError("x")]
)
async def test_unsendable_row_is_marked_rejected_and_other_rows_are_sent(site: Site, error: Exception) -> None:
    def refuse(messages: Sequence[Message]) -> None:
        if any(each.id.startswith("poison") for each in messages):
            raise error

    watched(site).before = refuse
    bus = await site.process()
    async with site.db.transaction():
        for n in range(20):
            await bus.publish(Ticked(n), id="poison-tick" if n == 7 else None)
            await bus.publish(Deposited(account="a", amount=n), id="poison-deposit" if n == 11 else None)
    with capture_logs() as logs:

        async def only_the_poison() -> bool:
            return [kind for kind, _ in await kinds(site)] == ["rejected", "rejected"]

        await site.until(only_the_poison)
    assert sorted(await site.delivered("ticks")) == [n for n in range(20) if n != 7]
    assert await site.delivered("deposits") == [n for n in range(20) if n != 11]
    assert [type(error).__name__ in reason for _, reason in await kinds(site)] == [True, True]
    rejected = [each["event_id"] for each in logs if each["event"] == "outbox message rejected"]
    assert sorted(rejected) == ["poison-deposit", "poison-tick"]
    assert bus.metrics.outbox_rejected == 2


@pytest.mark.parametrize(
    "error", [QueueUnavailable("busy"), QueueIndeterminate("lost"), OSError("no descriptors"), TimeoutError()]
)
async def test_transient_error_never_marks_a_row_as_rejected(site: Site, error: Exception) -> None:
    failing = 8

    def fail(_messages: Sequence[Message]) -> None:
        nonlocal failing
        if failing:
            failing -= 1
            raise error

    watched(site).before = fail
    bus = await site.process()
    await commit(site, bus, Ticked(1), Deposited(account="a", amount=1))
    await site.until(site.empty)
    assert (await site.delivered("ticks"), await site.delivered("deposits")) == ([1], [1])
    assert bus.metrics.outbox_rejected == 0
    assert failing == 0


async def test_unmapped_database_error_neither_ends_the_relay_nor_rejects_a_row(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await site.process()
    relay = bus._publisher.relay
    assert relay is not None
    failing = {"remove": 3, "ordered": 3, "acquire": 3}

    def unsteady(name: str) -> None:
        owner = relay._outbox.lease if name == "acquire" else relay._outbox
        original = getattr(owner, name)

        async def call(*arguments: object) -> object:
            if failing[name]:
                failing[name] -= 1
                raise DBAPIError("SELECT 1", None, Exception("canceling statement due to statement timeout"))
            return await original(*arguments)

        monkeypatch.setattr(owner, name, call)

    for name in failing:
        unsteady(name)
    await commit(site, bus, Ticked(1), Deposited(account="a", amount=1))
    await site.until(site.empty)
    assert failing == {"remove": 0, "ordered": 0, "acquire": 0}
    assert (await site.delivered("ticks"), await site.delivered("deposits")) == ([1], [1])
    assert bus.metrics.outbox_rejected == 0


async def test_group_that_fails_to_send_is_retried_in_smaller_groups(site: Site) -> None:
    def narrow(messages: Sequence[Message]) -> None:
        if len(messages) > 3:
            raise QueueUnavailable("no answer within 5 s")

    watched(site).before = narrow
    await insert(site, 100, kind="publish", key="a")
    await site.process()
    await site.until(site.empty)
    assert watched(site).ids == [f"publish-{n}" for n in range(100)]


async def test_refused_cancellation_is_marked_as_rejected(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(message_id: str) -> bool:
        raise QueueRejected(f"no such id as {message_id}")

    monkeypatch.setattr(site.mq, "cancel", refuse)
    await insert(site, 1, kind="cancel")
    bus = await site.process()
    await commit(site, bus, Deposited(account="a", amount=1))

    async def only_the_refused() -> bool:
        return [kind for kind, _ in await kinds(site)] == ["rejected"]

    await site.until(only_the_refused)
    assert await site.delivered("deposits") == [1]


# --- the relay lease --------------------------------------------------------------------------------------------------


class Shifted(FakeClock):
    """A clock whose wall time is wrong by `shift` seconds."""

    shift = 0.0

    def time(self) -> float:
        return super().time() + self.shift


async def test_relay_lease_does_not_depend_on_the_wall_clock(site: Site) -> None:
    ahead, behind = Shifted(), Shifted()
    ahead.shift, behind.shift = 3600.0, -3600.0
    dead, successor = RelayLease(site.db, ahead), RelayLease(site.db, behind)
    assert await dead.acquire("dead", LEASE)
    assert not await successor.acquire("successor", LEASE)
    await behind.advance(LEASE - 0.1)
    assert not await successor.acquire("successor", LEASE)
    assert await dead.acquire("dead", LEASE)  # the holder renewed: the wait starts again
    ahead.shift = -7200.0
    await behind.advance(LEASE - 0.1)
    assert not await successor.acquire("successor", LEASE)
    await behind.advance(LEASE)
    assert await successor.acquire("successor", LEASE)
    assert not await dead.acquire("dead", LEASE)
    await successor.release("successor")
    assert await dead.acquire("dead", LEASE)


async def test_relay_lease_is_acquired_by_one_of_two_processes(site: Site) -> None:
    clocks = [FakeClock(), FakeClock()]
    rivals = [RelayLease(site.db, each) for each in clocks]
    dead = RelayLease(site.db, FakeClock())
    assert await dead.acquire("dead", LEASE)
    for name, rival in zip("ab", rivals, strict=True):
        assert not await rival.acquire(name, LEASE)
    for each in clocks:
        await each.advance(LEASE)
    taken = await asyncio.gather(*(rival.acquire(name, LEASE) for name, rival in zip("ab", rivals, strict=True)))
    assert sorted(taken) == [False, True]


async def test_a_slow_group_keeps_the_relay_lease(site: Site) -> None:
    one, two = await site.process(), await site.process()
    mq = watched(site)
    mq.held["Deposited"] = asyncio.Event()
    await commit(site, one, Deposited(account="a", amount=1))
    for _ in range(30):  # ten times the duration of the lease
        await site.clock.advance(1)
        await asyncio.sleep(0.005)
    mq.held["Deposited"].set()
    await site.until(site.empty)
    assert len(mq.ids) == 1
    assert two.metrics.publish_failures == 0


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_waiting_broadcasts_are_bounded_and_drops_are_counted(site: Site) -> None:
    bus = await site.process()
    relay = bus._publisher.relay
    assert relay is not None
    site.mq.down = True
    for n in range(MAX_FRAMES + 5):
        relay.broadcast([("heard", b"%d" % n)])
    assert len(relay._broadcasts) == MAX_FRAMES
    assert bus.metrics.broadcasts_dropped == 5
    relay.broadcast([("heard", b"x" * 2**24)])
    assert len(relay._broadcasts) == 1


# --- cancellation -----------------------------------------------------------------------------------------------------


async def test_cancel_returns_false_for_events_that_can_no_longer_be_cancelled(site: Site) -> None:
    bus = await site.process()
    site.mq.down = True
    async with site.db.transaction():
        await bus.publish(Ticked(1), id="at-once")
        await bus.publish_delayed(Ticked(2), 5, id="soon")
        later = await bus.publish_delayed(Ticked(3), 3600)
    async with site.db.transaction():
        assert await bus.cancel("at-once") is False
        assert await bus.cancel(later) is True
        assert await bus.cancel(later) is False
    await site.clock.advance(6)
    site.mq.down = False
    assert await bus.cancel("soon") is False
    await site.until(site.empty)
    assert sorted(await site.delivered("ticks")) == [1, 2]


async def test_cancel_of_a_repeated_id_also_cancels_the_earlier_publish(site: Site) -> None:
    bus = await site.process()
    await bus.publish_delayed(Ticked(1), 3600, id="seven")
    async with site.db.transaction():
        await bus.publish_delayed(Ticked(2), 3600, id="seven")
        assert await bus.cancel("seven") is True
    await site.until(site.empty)
    assert await site.mq.scheduled("seven") is False


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("down", [True, False])
async def test_cancelled_id_can_be_scheduled_again(site: Site, *, together: bool, down: bool) -> None:
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish_delayed(Ticked(1), 3600, id="seven")
    if not down:
        await site.until(site.empty)
    site.mq.down = down
    if together:
        async with site.db.transaction():
            assert await bus.cancel("seven") is True
            await bus.publish_delayed(Ticked(2), 60, id="seven")
    else:
        async with site.db.transaction():
            assert await bus.cancel("seven") is True
        async with site.db.transaction():
            await bus.publish_delayed(Ticked(2), 60, id="seven")
    site.mq.down = False
    await site.until(site.empty)
    await site.pass_at_once(120)
    assert await site.delivered("ticks") == [2]


@pytest.mark.parametrize("inside", [True, False], ids=["in a transaction", "outside"])
@pytest.mark.parametrize("given_id", [None, "seven"])
async def test_event_cancelled_in_the_outbox_is_never_delivered_after_a_long_outage(
    site: Site, given_id: str | None, *, inside: bool
) -> None:
    bus = await site.process()
    site.mq.down = True
    async with site.db.transaction():
        message_id = await bus.publish_delayed(Ticked(1), 60, id=given_id)
        kept = await bus.publish_delayed(Ticked(2), 60)
    await site.clock.advance(5)  # the relay has tried to send them
    await site.until(lambda: bus.metrics.publish_failures > 1)
    if inside:
        await cancel_unclaimed(site, bus, message_id)
    else:
        assert await site.cancel(bus, message_id) is True
    assert await bus.cancel(message_id) is False
    assert await waiting_ids(site) == [
        kept,
        message_id,
    ]  # the second row is a cancellation; the event itself has no row
    await site.clock.advance(120)
    site.mq.down = False
    await site.until(site.empty)
    assert await site.delivered("ticks") == [2]


@pytest.mark.parametrize("in_time", [True, False], ids=["in time", "too late"])
async def test_cancel_of_an_event_being_sent_waits_for_the_queues_answer(site: Site, *, in_time: bool) -> None:
    bus = await site.process()
    mq = watched(site)
    mq.held["clock.ticked"] = stuck = asyncio.Event()
    async with site.db.transaction():
        message_id = await bus.publish_delayed(Ticked(1), 2)
    await site.until(lambda: mq.holding == {"clock.ticked"})
    cancelling = asyncio.create_task(bus.cancel(message_id))
    await site.clock.advance(0.5 if in_time else 3)
    assert not (in_time and cancelling.done())  # once the event is due, no answer of the queue is needed
    stuck.set()
    await site.until(cancelling.done)
    assert cancelling.result() is in_time
    await site.until(site.empty)
    await site.clock.advance(5)
    assert await site.delivered("ticks") == ([] if in_time else [1])


async def test_cancel_fails_while_the_outcome_of_the_send_is_unknown(site: Site) -> None:
    bus = await site.process()
    mq = watched(site)
    site.mq.lose_replies = 1_000_000
    async with site.db.transaction():
        message_id = await bus.publish_delayed(Ticked(1), 3600)
    await site.until(lambda: len(mq.ids) > 1)  # it was sent, but all replies were lost
    cancelling = asyncio.create_task(bus.cancel(message_id))
    await site.until(cancelling.done)
    with pytest.raises(CancelFailed, match="being sent to the queue"):
        await cancelling
    site.mq.lose_replies = 0
    await site.until(site.empty)
    assert await bus.cancel(message_id) is True
    await site.pass_at_once(3600)
    assert await site.delivered("ticks") == []


async def test_row_claimed_by_several_senders_cannot_be_taken_back(site: Site) -> None:
    bus = await site.process()
    site.mq.down = True
    async with site.db.transaction():
        for n in (1, 2):  # the second row is a duplicate, which no sender claims
            message_id = await bus.publish_delayed(Ticked(n), 3600, id="seven")
    await site.until(lambda: bus.metrics.publish_failures > 0)
    await bus.close()
    outbox = Outbox(site.db, site.clock)
    [entry] = await outbox.ordered(1)
    for sender in ("one", "other"):
        assert await outbox.claim(sender, [entry]) == [entry]
    await outbox.unclaim("other", [entry])
    await outbox.unclaim("one", [entry])
    async with site.db.transaction() as transaction:
        assert not await outbox.delete_unsent(transaction, message_id)


async def test_only_delayed_messages_are_claimed_before_sending(site: Site) -> None:
    bus = await site.process()
    entries = [
        Entry(n, kind, f"{n}", Message(id=f"{n}", event="clock.ticked", body=b"x", published_at=1.0, due_at=None))
        for n, kind in enumerate((EntryKind.PUBLISH, EntryKind.DIRECT), 1)
    ]
    async with site.db.write_lock():  # an UPDATE would wait for the lock
        assert await Outbox(site.db, site.clock).claim("sender", entries) == entries
    assert bus.metrics.publish_failures == 0


async def test_a_rejected_delayed_event_can_be_cancelled(site: Site) -> None:
    def refuse(messages: Sequence[Message]) -> None:
        raise QueueRejected("no")

    watched(site).before = refuse
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish_delayed(Ticked(1), 3600, id="seven")

    async def rejected() -> bool:
        return [kind for kind, _ in await kinds(site)] == ["rejected"]

    await site.until(rejected)
    assert await bus.cancel("seven") is True
    await site.until(site.empty)


async def test_same_id_on_two_event_classes_is_sent_twice(site: Site) -> None:
    bus = await site.process()
    async with site.db.transaction():
        await bus.publish(Ticked(1), id="seven")
        await bus.publish(Deposited(account="a", amount=2), id="seven")
        await bus.publish(UserCreated(), id="seven")
    await site.until(site.empty)
    assert (await site.delivered("ticks"), await site.delivered("deposits")) == ([1], [2])


async def recorded(db: Database, read: Callable[[], object]) -> list[tuple[str, tuple[object, ...]]]:
    """Return the SELECT statements that `read` executes, with their parameters."""
    from sqlalchemy import event

    statements: list[tuple[str, tuple[object, ...]]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: tuple[object, ...], *_: object) -> None:
        if statement.lstrip().startswith("SELECT"):
            statements.append((statement, parameters))

    engine = db.dialect.reader.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        result = read()
        assert asyncio.iscoroutine(result)
        await result
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return statements
