"""Every exception that user code raises has one defined outcome, and none ends the worker."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import pytest
import structlog
from structlog.testing import capture_logs

from bus import BusOptions, Delivery, Discard, Retry, RetryLater
from bus.testing import BusKit
from infra.mq import Message
from tests.bus.events import Deposited, Ticked
from tests.bus.worker_harness import WorkerHarness
from tests.hostile_errors import ExitingText, PanicException, Wordless

ONCE = Retry(max_attempts=1)


class Mislabelled(Exception):
    @property  # type: ignore[misc]  # hostile on purpose
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]  # hostile on purpose
        raise ValueError("no class")


FAILURES: dict[str, Callable[[], BaseException]] = {
    "plain": lambda: ValueError("plain"),
    "group": lambda: ExceptionGroup("several", [ValueError(), ExceptionGroup("nested", [KeyError()])]),
    "base group": lambda: BaseExceptionGroup("several", [PanicException(), asyncio.CancelledError()]),
    "panic": lambda: PanicException("index out of bounds"),
    "str fails": Wordless,
    "str exits": ExitingText,
    "class fails": Mislabelled,
    "cancelled elsewhere": asyncio.CancelledError,
    "generator exit": GeneratorExit,
    "stop": StopAsyncIteration,
    "not storable": lambda: RuntimeError("\ud83d \0"),
    "a megabyte": lambda: ValueError("x" * 1_000_000),
}


@pytest.mark.parametrize("make", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("plain_def", [False, True])
async def test_any_raised_exception_is_one_failure_and_other_deliveries_complete(
    make: Callable[[], BaseException],
    plain_def: bool,
) -> None:
    harness = WorkerHarness()
    seen: list[tuple[int, int]] = []

    async def in_loop(event: Ticked, delivery: Delivery) -> None:
        seen.append((event.n, delivery.attempt))
        if event.n == 1:
            raise make()

    def in_thread(event: Ticked, delivery: Delivery) -> None:
        seen.append((event.n, delivery.attempt))
        if event.n == 1:
            raise make()

    handler = in_thread if plain_def else in_loop
    retry = Retry(max_attempts=2, min_delay=1, jitter="none")
    harness.bus.add_async_listener(handler, name="l", retry=retry)
    async with harness.working() as worker:
        await harness.bus.publish_many([Ticked(n) for n in range(5)])
        await harness.until(lambda: len(seen) == 5 and harness.bus.metrics.listeners["l"].failed)
        await harness.clock.advance(1)
        await harness.until(lambda: harness.bus.metrics.listeners["l"].dead)
        assert not worker.done()
        await harness.clock.settle()
        [dead] = await harness.mq.dead_letters()
        [stats] = await harness.mq.stats()
    assert sorted(seen) == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (4, 1)]
    assert (dead.failures, dead.crashes) == (2, 0)
    assert dead.error.encode()
    assert len(dead.error) < 5_000
    assert "\0" not in dead.error + dead.traceback
    assert (stats.ready, stats.in_flight, stats.retrying) == (0, 0, 0)
    assert not harness.consumers[0].lost


@dataclass(frozen=True)
class RaisingEvent:
    """An event whose class runs its own code while it is decoded."""

    n: int
    error: ClassVar[BaseException | None] = None

    def __post_init__(self) -> None:
        if RaisingEvent.error is not None:
            raise RaisingEvent.error


@pytest.mark.parametrize(
    "error",
    [AttributeError("no"), RecursionError(), PanicException("no"), Wordless()],
    ids=lambda it: type(it).__name__,
)
async def test_event_that_cannot_be_decoded_is_a_failure(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = WorkerHarness()

    async def handler(event: RaisingEvent) -> None:
        raise AssertionError("there is no event")

    harness.bus.add_async_listener(handler, name="l", retry=ONCE)
    async with harness.working() as worker:
        await harness.bus.publish(RaisingEvent(1))
        monkeypatch.setattr(RaisingEvent, "error", error)
        await harness.clock.advance(1)
        assert not worker.done()
        assert [each.failures for each in await harness.mq.dead_letters()] == [1]


class Unruly(Retry):
    answer: ClassVar[object] = None

    def delay(self, failures: int, random: Random) -> float | None:
        if isinstance(Unruly.answer, BaseException):
            raise Unruly.answer
        return Unruly.answer  # type: ignore[return-value]  # wrong on purpose


@pytest.mark.parametrize(
    "answer",
    [ValueError("no"), PanicException(), float("nan"), float("inf"), -1.0, "soon", 1e300, SystemExit(3)],
    ids=["error", "panic", "nan", "inf", "negative", "text", "too long", "exit"],
)
async def test_invalid_delay_of_a_retry_policy_is_replaced_by_the_default(
    answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = WorkerHarness()
    attempts: list[int] = []

    async def handler(event: Ticked, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt == 1:
            raise ValueError

    monkeypatch.setattr(Unruly, "answer", answer)
    harness.bus.add_async_listener(handler, name="l", retry=Unruly())
    async with harness.working() as worker:
        await harness.bus.publish(Ticked(1))
        await harness.clock.advance(1.1)  # the default's first delay is up to a second
        assert not worker.done()
    assert attempts == [1, 2]


class Limited(Exception):
    def __init__(self, retry_after: object) -> None:
        super().__init__("too many requests")
        self.retry_after = retry_after


async def attempts_at(retry: Retry, *raised: BaseException) -> list[tuple[float, bool]]:
    """Return when each attempt ran, in seconds after the first, and whether it was the last of the listener's policy.

    The handler raises one of `raised` after another, and then succeeds.
    """
    errors, ran = list(raised), list[tuple[float, bool]]()

    async def handler(event: Ticked, delivery: Delivery) -> None:
        ran.append((kit.clock.time(), delivery.last_attempt))
        if errors:
            raise errors.pop(0)

    async with BusKit(strict=False) as kit:
        kit.bus.add_async_listener(handler, name="l", retry=retry)
        await kit.start()
        await kit.bus.publish(Ticked(1))
        await kit.advance(days=1)
    return [(round(at - ran[0][0], 3), last) for at, last in ran]


async def test_each_failure_is_retried_by_the_policy_of_its_error() -> None:
    retry = Retry(max_attempts=3, delays=(10,), cases={Limited: Retry(max_attempts=5, delays=(60, 120))})
    ran = await attempts_at(retry, Limited(None), ValueError(), Limited(None), Limited(None))
    assert ran == [(0, False), (60, False), (70, True), (190, True), (310, True)]


async def test_failures_of_all_errors_count_for_each_policy() -> None:
    retry = Retry(max_attempts=3, delays=(10,), cases={Limited: Retry(max_attempts=5, delays=(10,))})
    assert len(await attempts_at(retry, Limited(None), Limited(None), ValueError(), Limited(None))) == 3
    assert len(await attempts_at(Retry(cases={ValueError: ONCE}), ValueError())) == 1


async def test_after_lengthens_a_delay_and_never_shortens_it() -> None:
    retry = Retry(delays=(10,), after=lambda error: getattr(error, "retry_after", None))
    assert await attempts_at(retry, Limited(45), Limited(2), Limited(None), ValueError()) == [
        (0, False),
        (45, False),
        (55, False),
        (65, False),
        (75, False),
    ]


def raise_exit(_error: BaseException) -> float:
    raise SystemExit(3)


@pytest.mark.parametrize("answer", ["soon", -1, float("nan"), float("inf"), 1e12, []])
async def test_invalid_result_of_after_is_logged_and_ignored(answer: object) -> None:
    retry = Retry(delays=(10,), after=lambda error: getattr(error, "retry_after", None))
    with capture_logs() as logs:
        assert await attempts_at(retry, Limited(answer)) == [(0, False), (10, False)]
    assert [each["log_level"] for each in logs if each["event"] == "retry policy failed"] == ["error"]


async def test_exit_raised_by_after_is_logged_and_ignored() -> None:
    with capture_logs() as logs:
        assert len(await attempts_at(Retry(max_attempts=2, delays=(10,), after=raise_exit), ValueError())) == 2
    assert "retry policy failed" in [each["event"] for each in logs]


class ClassWithoutOrder(type):
    @property
    def __mro__(cls) -> tuple[type, ...]:
        raise ValueError("no order")


class Unordered(Exception, metaclass=ClassWithoutOrder):
    pass


async def test_error_whose_class_cannot_be_inspected_is_retried_by_the_default_policy() -> None:
    retry = Retry(max_attempts=1, cases={ValueError: ONCE})
    assert len(await attempts_at(retry, Unordered())) == 2


async def test_timeout_is_a_timeout_error_for_cases() -> None:
    harness, attempts = WorkerHarness(), list[int]()

    async def handler(event: Ticked, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        await asyncio.Event().wait()

    retry = Retry(delays=(1,), cases={TimeoutError: ONCE})
    harness.bus.add_async_listener(handler, name="l", retry=retry, timeout=5)
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        for _ in range(20):
            await harness.clock.advance(1)
        [dead] = await harness.mq.dead_letters()
    assert (attempts, dead.error) == ([1], "HandlerTimeout: took longer than its timeout of 5 s")


async def test_sync_listener_has_one_attempt() -> None:
    seen: list[bool] = []

    async def handler(event: Ticked, delivery: Delivery) -> None:
        seen.append(delivery.last_attempt)

    async with BusKit() as kit:
        kit.bus.add_sync_listener(handler)
        await kit.start()
        await kit.bus.publish(Ticked(1))
    assert seen == [True]


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), -1, "soon", None])
async def test_retry_later_with_an_invalid_delay_is_a_failure(delay: object) -> None:
    harness = WorkerHarness()

    async def handler(event: Ticked) -> None:
        later = RetryLater(1)
        later.delay = delay  # type: ignore[assignment]  # wrong on purpose
        raise later

    harness.bus.add_async_listener(handler, name="l", retry=ONCE)
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        await harness.clock.advance(1)
        [dead] = await harness.mq.dead_letters()
    assert dead.error.startswith("RetryLater")


async def raising_cleanup() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise ConnectionError("closing the connection failed")


async def raising_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raising_cleanup())


async def panicking_on_cancellation() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise PanicException from None


async def cancelling_itself() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()


ANSWERS = [raising_cleanup, raising_group, panicking_on_cancellation, cancelling_itself]


@pytest.mark.parametrize("answer", ANSWERS)
async def test_any_error_raised_on_cancellation_by_shutdown_releases_the_delivery(
    answer: Callable[[], Awaitable[None]],
) -> None:
    harness = WorkerHarness(BusOptions(grace=1))

    async def handler(event: Ticked) -> None:
        await answer()

    harness.bus.add_async_listener(handler, name="l", retry=ONCE, timeout=None)
    async with harness.working() as worker:
        await harness.bus.publish(Ticked(1))
        await harness.clock.advance(1)
        await harness.stop(worker)
        [stats] = await harness.mq.stats()
        assert (stats.ready, stats.in_flight, stats.retrying, stats.dead) == (1, 0, 0, 0)
    assert harness.bus.metrics.listeners["l"].failed == 0


async def test_handler_error_during_the_grace_period_releases_the_delivery() -> None:
    harness = WorkerHarness(BusOptions(grace=30))
    go_on = asyncio.Event()

    async def handler(event: Ticked) -> None:
        await go_on.wait()
        raise ConnectionError("the pool was closed by the stop")

    harness.bus.add_async_listener(handler, name="l", retry=ONCE, timeout=None)
    async with harness.working() as worker:
        await harness.bus.publish(Ticked(1))
        await harness.clock.settle()
        worker.cancel()
        await harness.clock.settle()
        go_on.set()
        await harness.clock.advance(1)
        assert worker.done()
        [stats] = await harness.mq.stats()
        assert (stats.ready, stats.retrying, stats.dead) == (1, 0, 0)


@pytest.mark.parametrize("answer", ANSWERS)
async def test_any_error_raised_on_cancellation_by_timeout_counts_as_the_timeout(
    answer: Callable[[], Awaitable[None]],
) -> None:
    harness = WorkerHarness()
    seen: list[int] = []

    async def handler(event: Ticked) -> None:
        if event.n == 1:
            await answer()
        await asyncio.sleep(0)
        seen.append(event.n)

    harness.bus.add_async_listener(handler, name="l", retry=ONCE, timeout=5, concurrency=1)
    async with harness.working():
        await harness.bus.publish_many([Ticked(1), Ticked(2), Ticked(3)])
        await harness.clock.advance(10)
        [dead] = await harness.mq.dead_letters()
    assert (dead.failures, dead.error) == (1, "HandlerTimeout: took longer than its timeout of 5 s")
    metrics = harness.bus.metrics.listeners["l"]
    assert (metrics.failed, metrics.timed_out, seen) == (1, 1, [2, 3])


async def test_handler_cancelling_its_own_task_does_not_affect_the_next_delivery() -> None:
    harness = WorkerHarness()
    seen: list[tuple[int, int]] = []

    async def handler(event: Ticked) -> None:
        task = asyncio.current_task()
        assert task is not None
        seen.append((event.n, task.cancelling()))
        if event.n in {1, 2}:
            task.cancel()
            task.cancel()
        if event.n == 2:
            return  # before the cancellation can be raised
        await asyncio.sleep(0)

    harness.bus.add_async_listener(handler, name="l", retry=ONCE, concurrency=1)
    async with harness.working():
        await harness.bus.publish_many([Ticked(n) for n in range(5)])
        await harness.until(lambda: len(seen) == 5)
        await harness.clock.settle()
        [dead] = await harness.mq.dead_letters()
    assert seen == [(n, 0) for n in range(5)]
    assert dead.error.startswith("HandlerCancelled")
    assert harness.bus.metrics.listeners["l"].handled == 4


tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


@pytest.mark.parametrize("ordered", [False, True])
async def test_context_variables_of_a_delivery_do_not_leak_into_the_next(ordered: bool) -> None:
    harness = WorkerHarness()
    seen: list[str | None] = []

    async def handler(event: Deposited) -> None:
        seen.append(tenant.get())
        tenant.set("first")
        structlog.contextvars.bind_contextvars(user="ada")
        await asyncio.sleep(0)
        seen.append(tenant.get())
        tenant.set("second")
        await asyncio.create_task(asyncio.sleep(0))
        seen.append(tenant.get())

    if ordered:
        harness.bus.add_async_ordered_listener(handler, name="l")
    else:
        harness.bus.add_async_listener(handler, name="l", concurrency=1)
    async with harness.working():
        await harness.bus.publish_many([Deposited(account="a", amount=n) for n in range(3)])
        await harness.until(lambda: len(seen) == 9)
    assert seen == [None, "first", "second"] * 3
    assert tenant.get() is None


async def test_unprintable_log_value_does_not_affect_the_delivery() -> None:
    harness = WorkerHarness()
    rendered: list[str] = []

    def render(_: object, __: str, entry: Any) -> Any:  # noqa: ANN401 - structlog's processors take and return anything
        rendered.append(f"{entry}")
        raise structlog.DropEvent

    async def handler(event: Ticked) -> None:
        structlog.contextvars.bind_contextvars(user=Wordless())
        raise ValueError("no")

    harness.bus.add_async_listener(handler, name="l", retry=ONCE)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars, render]):
        async with harness.working():
            await harness.bus.publish(Ticked(1))
            await harness.clock.advance(1)
            [dead] = await harness.mq.dead_letters()
    assert dead.error == "ValueError: no"
    assert any("delivery dead-lettered" in line for line in rendered)


class CallableObject:
    async def __call__(self, event: Ticked) -> None:
        await asyncio.sleep(0)
        SEEN.append(event.n)


SEEN: list[int] = []


async def handle(event: Ticked) -> None:
    await asyncio.sleep(0)
    SEEN.append(event.n)


@functools.wraps(handle)
def wrapped(*args: Any) -> Any:  # noqa: ANN401 - a decorator's
    return handle(*args)


def unmarked(event: Ticked) -> Awaitable[None]:
    return handle(event)


async def passing_on(event: Ticked) -> Awaitable[None]:
    return handle(event)


def with_prefix(prefix: str, event: Ticked) -> Awaitable[None]:
    return handle(event)


HANDLERS: dict[str, Any] = {
    "plain": handle,
    "wrapped": wrapped,
    "wrapped without functools.wraps": unmarked,
    "returns an awaitable": passing_on,
    "partial": functools.partial(with_prefix, "p"),
    "partial of a partial": functools.partial(functools.partial(handle)),
    "callable object": CallableObject(),
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
async def test_wrapped_handler_is_awaited(handler: Any) -> None:  # noqa: ANN401 - all kinds
    SEEN.clear()
    harness = WorkerHarness()
    harness.bus.add_async_listener(handler, name="l")
    async with harness.working():
        for n in range(3):
            await harness.bus.publish(Ticked(n))
            await harness.until(lambda n=n: len(SEEN) == n + 1)  # type: ignore[misc]  # mypy takes n for a parameter of the condition
    assert SEEN == [0, 1, 2]
    assert harness.bus.metrics.listeners["l"].handled == 3


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
async def test_wrapped_sync_and_broadcast_listeners_are_awaited(handler: Any) -> None:  # noqa: ANN401 - all kinds
    SEEN.clear()
    async with BusKit() as kit:
        kit.bus.add_sync_listener(handler)
        kit.bus.add_broadcast_listener(handler)
        await kit.start()
        await kit.bus.publish(Ticked(1))
    assert SEEN == [1, 1]


async def yielding(event: Ticked) -> AsyncIterator[int]:
    SEEN.append(event.n)
    yield event.n


def returning_a_generator(event: Ticked) -> Any:  # noqa: ANN401 - a decorator's
    return yielding(event)


async def returning_a_generator_later(event: Ticked) -> Any:  # noqa: ANN401 - a decorator's
    return yielding(event)


@pytest.mark.parametrize("handler", [returning_a_generator, returning_a_generator_later])
async def test_handler_that_returns_a_generator_counts_as_failed(handler: Any) -> None:  # noqa: ANN401 - all kinds
    harness = WorkerHarness()
    harness.bus.add_async_listener(handler, name="l", retry=ONCE)
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        await harness.until(lambda: harness.bus.metrics.listeners["l"].dead)
        await harness.clock.settle()
        [dead] = await harness.mq.dead_letters()
    assert dead.error.startswith("TypeError: the handler returned a generator, whose body never runs")
    assert harness.bus.metrics.listeners["l"].handled == 0


async def test_value_that_a_handler_returns_is_ignored() -> None:
    harness = WorkerHarness()

    async def handler(event: Ticked) -> int:
        return 5

    harness.bus.add_async_listener(handler, name="l", retry=ONCE)  # type: ignore[arg-type]  # against its signature
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        await harness.until(lambda: harness.bus.metrics.listeners["l"].handled)
    assert harness.bus.metrics.listeners["l"].failed == 0


async def test_thread_start_failure_counts_no_failure_and_repeats_no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = WorkerHarness()
    seen: list[int] = []
    start, refusals = threading.Thread.start, 3

    def refusing(thread: threading.Thread) -> None:
        nonlocal refusals
        if thread.name.startswith("bus handler") and refusals:
            refusals -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    def handler(event: Ticked, delivery: Delivery) -> None:
        seen.append(delivery.attempt)

    harness.bus.add_async_listener(handler, name="l", retry=ONCE)
    monkeypatch.setattr(threading.Thread, "start", refusing)
    async with harness.working():
        await harness.bus.publish_many([Ticked(1), Ticked(2)])
        for _ in range(4):
            await harness.clock.advance(1)
        await harness.until(lambda: harness.bus.metrics.listeners["l"].handled == 2)
        assert await harness.mq.dead_letters() == []
    assert (seen, refusals) == ([1, 1], 0)
    assert harness.bus.metrics.listeners["l"].failed == 0


async def test_message_with_a_newer_frame_version_is_parked() -> None:
    harness = WorkerHarness()
    asked: list[Any] = []

    async def handler(event: Ticked) -> None:
        raise AssertionError("this code cannot read the frame")

    harness.bus.add_async_listener(handler, name="l", retry=ONCE)
    async with harness.working():
        settle = harness.consumers[0].settle

        async def recording(settlements: Any) -> Any:  # noqa: ANN401 - stands in for any
            asked.extend(settlements)
            return await settle(settlements)

        harness.consumers[0].settle = recording  # type: ignore[method-assign]  # records the settlements
        await harness.mq.publish([Message(id="m", event="clock.ticked", body=b"\x92\x02\x00", published_at=0.0)])
        await harness.clock.advance(30)
        [stats] = await harness.mq.stats()
    assert (stats.parked, stats.dead) == (1, 0)
    assert [each.needs for each in asked] == ["frame version 2"]


async def test_any_exception_of_a_sync_listener_fails_only_its_publisher() -> None:
    async with BusKit(strict=False) as kit:
        refused: list[BaseException] = []

        async def refuse(event: Ticked) -> None:
            raise PanicException

        async def publish(event: Deposited) -> None:
            try:
                await kit.bus.publish(Ticked(1))
            except BaseException as error:
                refused.append(error)
                raise

        kit.bus.add_sync_listener(refuse)
        kit.bus.add_async_listener(publish, name="l", retry=ONCE)
        await kit.start()
        await kit.bus.publish(Deposited(account="a", amount=1))
        await kit.drain()
        [dead] = await kit.dead_letters()
    assert (len(refused), dead.error) == (1, "PanicException")


async def test_discard_and_retry_later_count_even_when_raised_on_cancellation() -> None:
    harness = WorkerHarness()

    async def handler(event: Ticked) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise (Discard("late") if event.n == 1 else RetryLater(50)) from None

    harness.bus.add_async_listener(handler, name="l", retry=ONCE, timeout=5)
    async with harness.working():
        await harness.bus.publish_many([Ticked(1), Ticked(2)])
        await harness.clock.advance(10)
        metrics = harness.bus.metrics.listeners["l"]
        assert (metrics.discarded, metrics.deferred, metrics.failed) == (1, 1, 0)
        [stats] = await harness.mq.stats()
        assert (stats.retrying, stats.dead) == (1, 0)
