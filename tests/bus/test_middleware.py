"""Middleware: what runs around attempts, in which order, and what it can change about the outcome."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from bus import BusFrozen, CallNext, Delivery, Discard, InvalidListener, Middleware, Retry, RetryLater
from bus.testing import BusKit
from infra.db import Database
from tests.bus.events import Deposited, Ticked
from tests.bus.worker_harness import WorkerHarness

ONCE = Retry(max_attempts=1)

tenant: ContextVar[str] = ContextVar("tenant", default="none")


class Trace:
    """Middleware and handlers that record what runs."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def layer(self, name: str) -> Middleware:
        async def middleware(event: object, delivery: Delivery, call_next: CallNext) -> None:
            self.lines.append(f"{name} in")
            try:
                await call_next()
            finally:
                self.lines.append(f"{name} out")

        return middleware

    async def handle(self, event: Ticked) -> None:
        self.lines.append(f"handle {event.n}")

    async def fail(self, event: Ticked) -> None:
        self.lines.append("fail")
        raise ValueError("no")


@pytest.fixture
def trace() -> Trace:
    return Trace()


@pytest.fixture
async def kit() -> AsyncIterator[BusKit]:
    async with BusKit() as kit:
        yield kit


async def outcome(
    kit: BusKit,
    middleware: Middleware,
    handler: Callable[[Ticked], Any],
    *,
    retry: Retry = ONCE,
) -> list[str]:
    """Deliver one event to a listener with one middleware; return the errors of its dead letters."""
    kit.bus.add_async_listener(handler, name="l", middleware=[middleware], retry=retry)
    await kit.start()
    await kit.bus.publish(Ticked(1))
    await kit.advance(hours=1)
    dead = [each.error for each in await kit.dead_letters()]
    assert dead == [each.error for each in kit.failures if each.outcome == "dead"]
    return dead


async def test_middleware_of_the_bus_surrounds_that_of_the_listener_in_order(kit: BusKit, trace: Trace) -> None:
    kit.bus.add_async_listener(trace.handle, name="l", middleware=(trace.layer("c"), trace.layer("d")))
    kit.bus.add_middleware(trace.layer("a"))
    kit.bus.add_middleware(trace.layer("b"))
    await kit.start()
    await kit.bus.publish(Ticked(1))
    await kit.drain()
    assert trace.lines == ["a in", "b in", "c in", "d in", "handle 1", "d out", "c out", "b out", "a out"]


async def test_middleware_receives_the_event_and_its_delivery(kit: BusKit) -> None:
    seen: list[tuple[object, str, int]] = []

    async def middleware(event: object, delivery: Delivery, call_next: CallNext) -> None:
        seen.append((event, delivery.listener, delivery.attempt))
        await call_next()

    async def on_deposit(event: Deposited) -> None: ...

    kit.bus.add_async_ordered_listener(on_deposit, name="deposits")
    kit.bus.add_middleware(middleware)
    await kit.start()
    deposited = Deposited(account="a", amount=1)
    await kit.bus.publish(deposited)
    await kit.drain()
    assert seen == [(deposited, "deposits", 1)]


async def test_context_of_the_middleware_reaches_the_handler_and_no_other_delivery(kit: BusKit) -> None:
    seen: list[tuple[int, str]] = []

    async def with_tenant(event: object, delivery: Delivery, call_next: CallNext) -> None:
        if "tenant" in delivery.headers:
            tenant.set(delivery.headers["tenant"])
        await call_next()

    async def in_loop(event: Ticked) -> None:
        seen.append((event.n, tenant.get()))

    def in_thread(event: Ticked) -> None:
        seen.append((event.n, tenant.get()))

    kit.bus.add_middleware(with_tenant)
    kit.bus.add_async_listener(in_loop, name="loop")
    kit.bus.add_async_listener(in_thread, name="thread")
    await kit.start()
    await kit.bus.publish(Ticked(1), headers={"tenant": "acme"})
    await kit.bus.publish(Ticked(2))
    await kit.drain()
    assert sorted(seen) == [(1, "acme"), (1, "acme"), (2, "none"), (2, "none")]
    assert tenant.get() == "none"


async def test_error_that_a_middleware_suppresses_counts_and_is_logged(kit: BusKit, trace: Trace) -> None:
    async def suppress_errors(event: object, delivery: Delivery, call_next: CallNext) -> None:
        with contextlib.suppress(ValueError):
            await call_next()

    with capture_logs() as logs:
        assert await outcome(kit, suppress_errors, trace.fail) == ["ValueError: no"]
    [line] = [each for each in logs if each["event"] == "handler error suppressed"]
    assert line["listener"] == "l"
    assert "suppress_errors" in line["middleware"]


@pytest.mark.parametrize(
    ("raised", "errors"),
    [(Discard("too old"), []), (RetryLater(1), []), (KeyError("k"), ["KeyError: 'k'"])],
    ids=["discard", "later", "error"],
)
@pytest.mark.parametrize("called", [True, False])
async def test_error_of_a_middleware_decides_the_outcome(
    kit: BusKit, trace: Trace, raised: Exception, errors: list[str], *, called: bool
) -> None:
    attempts: list[int] = []

    async def middleware(event: object, delivery: Delivery, call_next: CallNext) -> None:
        attempts.append(delivery.attempt)
        if called:
            await call_next()
        if len(attempts) == 1:
            raise raised
        if not called:
            await call_next()

    assert await outcome(kit, middleware, trace.handle) == errors
    assert len(attempts) == (2 if isinstance(raised, RetryLater) else 1)


async def skip(event: object, delivery: Delivery, call_next: CallNext) -> None: ...


async def forget_to_await(event: object, delivery: Delivery, call_next: CallNext) -> None:
    call = call_next()
    cast("Any", call).close()


async def call_twice(event: object, delivery: Delivery, call_next: CallNext) -> None:
    await call_next()
    await call_next()


async def leave_early(event: object, delivery: Delivery, call_next: CallNext) -> None:
    task = asyncio.ensure_future(call_next())
    await asyncio.sleep(0)
    tasks.add(task)


tasks: set["asyncio.Future[None]"] = set()


@pytest.mark.parametrize(
    ("middleware", "error"),
    [
        (skip, "returned without calling call_next(); to drop an event raise Discard"),
        (forget_to_await, "returned without calling call_next(); to drop an event raise Discard"),
        (call_twice, "call_next() was called twice in one attempt"),
        (leave_early, "returned before call_next() had ended; await it"),
    ],
)
async def test_middleware_without_an_outcome_of_the_handler_fails_the_attempt(
    kit: BusKit, middleware: Middleware, error: str
) -> None:
    async def handler(event: Ticked) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    [dead] = await outcome(kit, middleware, handler)
    assert dead.startswith("MiddlewareError: ")
    assert error in dead
    for task in tasks:
        await task
    tasks.clear()


async def test_timeout_cancels_the_handler_through_its_middleware(trace: Trace) -> None:
    harness = WorkerHarness()

    async def hang(event: Ticked) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            trace.lines.append("cancelled")

    harness.bus.add_middleware(trace.layer("a"))
    harness.bus.add_async_listener(hang, name="l", retry=ONCE, timeout=5)
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        for _ in range(10):
            await harness.clock.advance(1)
        [dead] = await harness.mq.dead_letters()
    assert trace.lines == ["a in", "cancelled", "a out"]
    assert dead.error == "HandlerTimeout: took longer than its timeout of 5 s"


async def test_timeout_of_the_handler_is_a_timeout_error_to_middleware() -> None:
    harness = WorkerHarness()
    errors: list[BaseException] = []

    async def record(event: object, delivery: Delivery, call_next: CallNext) -> None:
        try:
            await call_next()
        except Exception as error:
            errors.append(error)
            raise

    async def hang(event: Ticked) -> None:
        await asyncio.Event().wait()

    harness.bus.add_async_listener(hang, name="l", middleware=[record], retry=ONCE, timeout=5)
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        for _ in range(10):
            await harness.clock.advance(1)
        [dead] = await harness.mq.dead_letters()
        metrics = harness.bus.metrics.listeners["l"]
    [timeout] = errors
    assert isinstance(timeout, TimeoutError)
    assert (dead.error, dead.traceback) == (f"HandlerTimeout: {timeout}", "")
    assert (metrics.failed, metrics.timed_out) == (1, 1)


async def test_shutdown_reaches_middleware_as_a_cancellation() -> None:
    harness = WorkerHarness()
    raised: list[type[BaseException]] = []

    async def record(event: object, delivery: Delivery, call_next: CallNext) -> None:
        try:
            await call_next()
        except BaseException as error:
            raised.append(type(error))
            raise

    async def hang(event: Ticked) -> None:
        await asyncio.Event().wait()

    harness.bus.add_async_listener(hang, name="l", middleware=[record], retry=ONCE, timeout=5000)
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        await harness.clock.settle()
    assert raised == [asyncio.CancelledError]
    assert await harness.mq.dead_letters() == []


@pytest.fixture
async def db(migrated_copy: Path) -> AsyncIterator[Database]:
    db = Database(f"sqlite:///{migrated_copy}", busy_timeout=30)
    await db.open()
    async with db.transaction() as transaction:
        await transaction.session.execute(text("CREATE TABLE ledger (n INTEGER)"))
    yield db
    await db.close()


async def test_transaction_of_the_middleware_includes_that_of_a_once_listener(db: Database) -> None:
    fails = [True]

    async def in_transaction(event: object, delivery: Delivery, call_next: CallNext) -> None:
        async with db.transaction():
            await call_next()
            if fails:
                raise ValueError(fails.pop())

    async def handle(event: Ticked) -> None:
        async with db.transaction() as transaction:
            await transaction.session.execute(text("INSERT INTO ledger VALUES (:n)"), {"n": event.n})

    async with BusKit(db=db) as kit:
        kit.bus.add_async_listener(handle, name="l", once=True, middleware=[in_transaction], retry=Retry(delays=(1,)))
        await kit.start()
        await kit.bus.publish(Ticked(7))
        await kit.advance(minutes=1)
        assert [each.outcome for each in kit.failures] == ["retry"]
        async with db.read() as session:
            assert (await session.scalars(text("SELECT n FROM ledger"))).all() == [7]


async def test_duplicate_of_a_once_listener_is_a_discard_to_middleware(db: Database) -> None:
    ends: list[str] = []

    async def record(event: object, delivery: Delivery, call_next: CallNext) -> None:
        try:
            await call_next()
        except Discard:
            ends.append("discard")
            raise
        ends.append("handled")

    async def handle(event: Ticked) -> None:
        async with db.transaction() as transaction:
            await transaction.session.execute(text("INSERT INTO ledger VALUES (:n)"), {"n": event.n})

    async with BusKit(db=db) as kit:
        kit.bus.add_async_listener(handle, name="l", once=True, middleware=[record])
        await kit.start()
        await kit.bus.publish(Ticked(7), id="seven")
        await kit.drain()
        await kit.advance(minutes=10)  # beyond the queue's dedupe window
        await kit.bus.publish(Ticked(7), id="seven")
        await kit.drain()
        metrics = kit.bus.metrics.listeners["l"]
        assert ends == ["handled", "discard"]
        assert (metrics.handled, metrics.discarded, kit.failures) == (2, 0, [])


async def test_middleware_does_not_run_for_undecodable_unknown_and_expired_deliveries(
    kit: BusKit, trace: Trace
) -> None:
    kit.bus.add_middleware(trace.layer("a"))
    kit.bus.add_async_listener(trace.handle, name="l")
    await kit.start()
    await kit.bus.publish(Ticked(1), expires_in=1)
    await kit.clock.advance(1)
    await kit.drain()
    assert trace.lines == []


async def test_sync_and_broadcast_listeners_have_no_middleware(kit: BusKit, trace: Trace) -> None:
    kit.bus.add_middleware(trace.layer("a"))
    kit.bus.add_sync_listener(trace.handle)
    await kit.start()
    await kit.bus.publish(Ticked(1))
    assert trace.lines == ["handle 1"]
    with pytest.raises(TypeError, match="'middleware' is not an option of sync listeners"):
        cast("Any", BusKit().bus._registration).add(kit.bus.listeners[0].kind, trace.fail, {"middleware": []})


async def test_middleware_cannot_be_added_to_a_started_bus(kit: BusKit, trace: Trace) -> None:
    await kit.start()
    with pytest.raises(BusFrozen, match=r"add it before bus\.start"):
        kit.bus.add_middleware(trace.layer("a"))


def plain(event: object, delivery: Delivery, call_next: CallNext) -> None: ...


async def short(event: object, call_next: CallNext) -> None: ...


class Layer:
    async def __call__(self, event: object, delivery: Delivery, call_next: CallNext) -> None:
        await call_next()


@pytest.mark.parametrize("wrong", [None, "trace", 5, plain, short, Layer, lambda: None])
def test_invalid_middleware_is_refused(wrong: object) -> None:
    async def handler(event: Ticked) -> None: ...

    bus = BusKit().bus
    with pytest.raises(InvalidListener, match="a middleware is `async def"):
        bus.add_middleware(cast("Any", wrong))
    with pytest.raises(InvalidListener, match=r"handler: .*(a middleware is `async def|must be a list of functions)"):
        bus.add_async_listener(handler, name="l", middleware=cast("Any", wrong if wrong is None else [wrong]))


async def test_callable_objects_and_partials_are_middleware(kit: BusKit, trace: Trace) -> None:
    async def named(name: str, event: object, delivery: Delivery, call_next: CallNext) -> None:
        trace.lines.append(name)
        await call_next()

    kit.bus.add_middleware(Layer())
    kit.bus.add_middleware(functools.partial(named, "partial"))
    kit.bus.add_async_listener(trace.handle, name="l")
    await kit.start()
    await kit.bus.publish(Ticked(1))
    await kit.drain()
    assert trace.lines == ["partial", "handle 1"]
