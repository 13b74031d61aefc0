"""The middleware and publish hooks of docs/middleware.md, with all kinds of handlers and ends of attempts."""

import asyncio
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import sentry_sdk
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from structlog.testing import LogCapture

from bus import Bus, BusOptions, Delivery, Discard, Retry, RetryLater
from bus.testing import BusKit
from tests.bus.events import Ticked, UserUpdated
from tests.bus.worker_harness import WorkerHarness
from tests.docs.blocks import ROOT, blocks

ONCE = Retry(max_attempts=1)
TWICE = Retry(delays=(5,), max_attempts=2)


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example of the page that the test names, as a module."""
    page = ROOT / "docs" / "middleware.md"
    module = ModuleType("middleware_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = {each.options["example"]: each for each in blocks(page, "python") if "example" in each.options}
    for name in ("events", request.param):
        # The leading blank lines let tracebacks show the line numbers of the page.
        source = "\n" * (found[name].line - 1) + found[name].text
        exec(compile(source, str(page), "exec"), module.__dict__)  # noqa: S102 - the project's own document
    return module


def uses(name: str) -> pytest.MarkDecorator:
    """Return the mark of tests of one example."""
    return pytest.mark.parametrize("example", [name], indirect=True)


class Ends:
    """Listeners whose attempts succeed, fail twice, are discarded, or are deferred."""

    def __init__(self, bus: Bus) -> None:
        bus.add_async_listener(self.succeed, name="succeed")
        bus.add_async_listener(self.succeed_in_thread, name="succeed_in_thread")
        bus.add_async_listener(self.fail, name="fail", retry=TWICE)
        bus.add_async_listener(self.fail_in_thread, name="fail_in_thread", retry=TWICE)
        bus.add_async_listener(self.discard, name="discard", retry=ONCE)
        bus.add_async_listener(self.defer, name="defer", retry=ONCE)
        self.deferred = False

    async def succeed(self, event: Ticked) -> None: ...

    def succeed_in_thread(self, event: Ticked) -> None: ...

    async def fail(self, event: Ticked) -> None:
        raise ValueError("no")

    def fail_in_thread(self, event: Ticked) -> None:
        raise KeyError("no")

    async def discard(self, event: Ticked) -> None:
        raise Discard("not needed")

    async def defer(self, event: Ticked) -> None:
        if not self.deferred:
            self.deferred = True
            raise RetryLater(5)


async def run_into_timeout_and_shutdown(harness: WorkerHarness) -> None:
    """Let a handler run into its timeout, and another one into the shutdown of the worker."""

    async def hang(event: Ticked) -> None:
        await asyncio.Event().wait()

    async def hang_until_shutdown(event: Ticked) -> None:
        await asyncio.Event().wait()

    harness.bus.add_async_listener(hang, name="timeout", retry=ONCE, timeout=5)
    harness.bus.add_async_listener(hang_until_shutdown, name="shutdown", retry=ONCE, timeout=None)
    async with harness.working():
        await harness.bus.publish(Ticked(1))
        for _ in range(10):
            await harness.clock.advance(1)
    assert [each.subscription for each in await harness.mq.dead_letters()] == ["timeout"]


# --- OpenTelemetry ---------------------------------------------------------------------------------------------------


@pytest.fixture
def exporter(example: ModuleType) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    example.provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def outcomes(exporter: InMemorySpanExporter) -> list[tuple[Any, ...]]:
    """Return listener, attempt, status and error type of each consumer span."""
    found = []
    for span in exporter.get_finished_spans():
        given = span.attributes or {}
        if given["messaging.operation.type"] == "process":
            status = span.status.status_code
            assert [each.name for each in span.events] == (["exception"] if status is StatusCode.ERROR else [])
            name, attempt = given["messaging.destination.subscription.name"], given["beneath.attempt"]
            found.append((name, attempt, status.name, given.get("error.type")))
    return sorted(found, key=str)


@uses("opentelemetry")
async def test_consumer_spans_show_failures_alone_as_errors(
    example: ModuleType, exporter: InMemorySpanExporter
) -> None:
    async with BusKit(strict=False) as kit:
        kit.bus.add_publish_hook(example.inject_trace)
        kit.bus.add_middleware(example.trace_attempt)
        Ends(kit.bus)
        await kit.start()
        await kit.bus.publish(Ticked(1))
        await kit.advance(minutes=1)
    assert outcomes(exporter) == [
        ("defer", 1, "UNSET", None),
        ("defer", 1, "UNSET", None),
        ("discard", 1, "UNSET", None),
        ("fail", 1, "ERROR", "ValueError"),
        ("fail", 2, "ERROR", "ValueError"),
        ("fail_in_thread", 1, "ERROR", "KeyError"),
        ("fail_in_thread", 2, "ERROR", "KeyError"),
        ("succeed", 1, "UNSET", None),
        ("succeed_in_thread", 1, "UNSET", None),
    ]


@uses("opentelemetry")
async def test_consumer_span_shows_a_timeout_but_no_shutdown_as_error(
    example: ModuleType, exporter: InMemorySpanExporter
) -> None:
    harness = WorkerHarness()
    harness.bus.add_middleware(example.trace_attempt)
    await run_into_timeout_and_shutdown(harness)
    assert outcomes(exporter) == [("shutdown", 1, "UNSET", None), ("timeout", 1, "ERROR", "HandlerTimeout")]


@uses("opentelemetry")
async def test_spans_of_cause_and_effect_are_linked(example: ModuleType, exporter: InMemorySpanExporter) -> None:
    seen: list[Any] = []
    async with BusKit() as kit:

        async def publish(event: Ticked) -> None:
            await kit.bus.publish(UserUpdated())

        def handle(event: UserUpdated, delivery: Delivery) -> None:
            seen.append((delivery.id, trace.get_current_span()))

        kit.bus.add_publish_hook(example.inject_trace)
        kit.bus.add_middleware(example.trace_attempt)
        kit.bus.add_async_listener(publish, name="publish")
        kit.bus.add_async_listener(handle, name="handle")
        await kit.start()
        with example.tracer.start_as_current_span("request"):
            await kit.bus.publish(Ticked(1))
            await kit.drain()

    spans = {each.name: each for each in exporter.get_finished_spans()}
    assert len(spans) == 5
    assert parent(spans["create clock.ticked"]) == own(spans["request"])
    assert spans["process clock.ticked"].parent is None
    assert links(spans["process clock.ticked"]) == [own(spans["create clock.ticked"])]
    assert parent(spans["create UserUpdated"]) == own(spans["process clock.ticked"])
    assert links(spans["process UserUpdated"]) == [own(spans["create UserUpdated"])]
    kinds = {name.partition(" ")[0]: span.kind for name, span in spans.items()}
    assert (kinds["create"], kinds["process"]) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    [(message_id, current)] = seen
    assert current.get_span_context() == spans["process UserUpdated"].context
    for name in ("create UserUpdated", "process UserUpdated"):
        assert (spans[name].attributes or {})["messaging.message.id"] == message_id


def own(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def links(span: ReadableSpan) -> list[int]:
    return [each.context.span_id for each in span.links]


@uses("opentelemetry")
async def test_event_without_trace_context_has_a_consumer_span_without_links(
    example: ModuleType, exporter: InMemorySpanExporter
) -> None:
    async with BusKit(strict=False) as kit:
        kit.bus.add_middleware(example.trace_attempt)
        Ends(kit.bus)
        await kit.start()
        await kit.bus.publish(Ticked(1))
        await kit.drain()
    assert [len(each.links) for each in exporter.get_finished_spans()] == [0] * 6


# --- Sentry ----------------------------------------------------------------------------------------------------------


class Reports(Transport):
    """A transport that keeps the reported events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.events.append(envelope.get_event())

    def tags(self) -> list[dict[str, str]]:
        return [each["tags"] for each in self.events]


@pytest.fixture
def reports() -> Iterator[Reports]:
    reports = Reports()
    sentry_sdk.init("https://key@sentry.example/1", transport=reports, default_integrations=False)
    yield reports
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


@uses("sentry")
async def test_sentry_gets_the_last_failure_alone(example: ModuleType, reports: Reports) -> None:
    async with BusKit(strict=False) as kit:
        kit.bus.add_middleware(example.report_last_failure)
        Ends(kit.bus)
        await kit.start()
        await kit.bus.publish(Ticked(1), id="tick-1")
        await kit.advance(minutes=1)
    tags = {"event": "clock.ticked", "message_id": "tick-1", "attempt": "2"}
    assert sorted(reports.tags(), key=str) == [
        {"listener": "fail", **tags},
        {"listener": "fail_in_thread", **tags},
    ]
    assert len({each["contexts"]["trace"]["trace_id"] for each in reports.events}) == 2


@uses("sentry")
async def test_sentry_gets_timeouts_but_no_shutdowns(example: ModuleType, reports: Reports) -> None:
    harness = WorkerHarness()
    harness.bus.add_middleware(example.report_last_failure)
    await run_into_timeout_and_shutdown(harness)
    assert [(each["tags"]["listener"], each["exception"]["values"][-1]["type"]) for each in reports.events] == [
        ("timeout", "HandlerTimeout")
    ]


@uses("sentry")
@pytest.mark.parametrize("threaded", [False, True])
async def test_sentry_scope_of_a_delivery_does_not_reach_the_next(
    example: ModuleType, reports: Reports, *, threaded: bool
) -> None:
    def mark(event: Ticked) -> None:
        sentry_sdk.set_tag(f"seen-{event.n}", "yes")
        sentry_sdk.add_breadcrumb(message=f"tick {event.n}")
        raise ValueError(event.n)

    async def mark_in_loop(event: Ticked) -> None:
        mark(event)

    sentry_sdk.add_breadcrumb(message="worker started")
    async with BusKit(strict=False) as kit:
        kit.bus.add_middleware(example.report_last_failure)
        kit.bus.add_async_listener(mark if threaded else mark_in_loop, name="l", retry=ONCE)
        await kit.start()
        await kit.bus.publish_many([Ticked(1), Ticked(2)])
        await kit.drain()
    assert [{key for key in each if key.startswith("seen")} for each in reports.tags()] == [{"seen-1"}, {"seen-2"}]
    crumbs = [[each["message"] for each in event["breadcrumbs"]["values"]] for event in reports.events]
    assert crumbs == [["tick 1"], ["tick 2"]]


async def test_policies_of_listeners_tell_the_last_attempt_of_a_case() -> None:
    last: list[tuple[int, bool]] = []

    async def handle(event: Ticked, delivery: Delivery) -> None:
        raise ValueError("no") if delivery.attempt < 2 else KeyError("no")

    async with BusKit(strict=False) as kit:

        async def record(event: object, delivery: Delivery, call_next: Any) -> None:  # noqa: ANN401 - as the page has it
            try:
                await call_next()
            except Exception as error:
                most = policies[delivery.listener].policy_for(error).max_attempts
                last.append((delivery.attempt, delivery.attempt >= most))
                raise

        kit.bus.add_middleware(record)
        kit.bus.add_async_listener(handle, name="l", retry=Retry(cases={KeyError: ONCE}))
        policies = {each.name: each.options.retry for each in kit.bus.listeners}
        await kit.start()
        await kit.bus.publish(Ticked(1))
        await kit.advance(hours=1)
        assert last == [(1, False), (2, True)]
        assert len(await kit.dead_letters()) == 1


# --- Tenant ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[LogCapture]:
    """Log lines with the fields that are bound to the context; `capture_logs` would leave those out."""
    lines = LogCapture()
    former = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, lines])
    yield lines
    structlog.configure(processors=former)


@uses("tenant")
async def test_tenant_reaches_handlers_retries_and_log_lines(example: ModuleType, lines: LogCapture) -> None:
    seen: list[tuple[int, str | None]] = []

    def handle(event: Ticked, delivery: Delivery) -> None:
        seen.append((event.n, example.tenant.get()))
        if event.n == 1 and delivery.attempt == 1:
            raise ValueError("no")

    async with BusKit(strict=False) as kit:
        kit.bus.add_publish_hook(example.stamp_tenant)
        kit.bus.add_middleware(example.with_tenant)
        kit.bus.add_async_listener(handle, name="l", retry=TWICE)
        await kit.start()
        token = example.tenant.set("acme")
        await kit.bus.publish(Ticked(1))
        example.tenant.reset(token)
        await kit.bus.publish(Ticked(2))
        await kit.advance(minutes=1)
        assert example.tenant.get() is None
    assert seen == [(1, "acme"), (2, None), (1, "acme")]
    assert [each["tenant"] for each in lines.entries if each["event"] == "listener failed"] == ["acme"]
    assert "tenant" not in structlog.contextvars.get_contextvars()


@uses("tenant")
@pytest.mark.parametrize("kind", ["sync", "broadcast"])
async def test_tenant_header_passes_on_without_middleware(example: ModuleType, kind: str) -> None:
    seen: list[str | None] = []
    async with BusKit(options=BusOptions(propagate=frozenset({"tenant"}))) as kit:

        async def publish(event: Ticked) -> None:
            await kit.bus.publish(UserUpdated())

        async def handle(event: UserUpdated) -> None:
            seen.append(example.tenant.get())

        kit.bus.add_publish_hook(example.stamp_tenant)
        kit.bus.add_middleware(example.with_tenant)
        if kind == "sync":
            kit.bus.add_sync_listener(publish)
        else:
            kit.bus.add_broadcast_listener(publish)
        kit.bus.add_async_listener(handle, name="l")
        await kit.start()
        await kit.bus.publish(Ticked(1), headers={"tenant": "acme"})
        await kit.drain()
    assert seen == ["acme"]
