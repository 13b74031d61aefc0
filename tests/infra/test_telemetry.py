"""Metrics in the Prometheus format, and the scrape."""

import asyncio

from infra.clock import FakeClock
from infra.telemetry import Sample, Telemetry


def handled() -> list[Sample]:
    return [
        Sample("listener_handled", "Done.", "counter", 3, {"listener": "a"}),
        Sample("listener_handled", "Done.", "counter", 4, {"listener": 'b "quoted"'}),
    ]


async def test_counters_and_gauges_have_the_prometheus_format() -> None:
    telemetry = Telemetry(version="1.2", clock=FakeClock())
    telemetry.add(handled)
    telemetry.add(lambda: [Sample("queue_ready", "Waiting.", "gauge", 7, {})])
    text = (await telemetry.scrape()).decode()
    assert '# TYPE beneath_listener_handled_total counter\nbeneath_listener_handled_total{listener="a"} 3.0\n' in text
    assert 'beneath_listener_handled_total{listener="b \\"quoted\\""} 4.0\n' in text
    assert text.count("# HELP beneath_listener_handled_total") == 1
    assert "\nbeneath_queue_ready 7.0\n" in text
    assert 'beneath_build_info{python="3.' in text
    assert 'version="1.2"' in text


async def test_each_telemetry_has_a_separate_registry() -> None:
    for _ in range(2):
        Telemetry(clock=FakeClock()).add(handled)


async def test_async_readings_are_cached_for_a_few_seconds() -> None:
    clock, calls = FakeClock(), list[int]()

    async def read() -> list[Sample]:
        calls.append(1)
        return [Sample("queue_ready", "Waiting.", "gauge", len(calls), {})]

    telemetry = Telemetry(clock=clock, max_age=3.0)
    telemetry.add_async("queue", read)
    await asyncio.gather(telemetry.scrape(), telemetry.scrape())
    await clock.advance(2.9)
    assert b"beneath_queue_ready 1.0" in await telemetry.scrape()
    await clock.advance(0.2)
    text = await telemetry.scrape()
    assert b"beneath_queue_ready 2.0" in text
    assert b"beneath_queue_up 1.0" in text


async def test_scrape_succeeds_while_the_queue_is_unavailable() -> None:
    clock = FakeClock()
    answers: list[list[Sample] | Exception] = [[Sample("queue_ready", "Waiting.", "gauge", 7, {})], OSError("down")]

    async def read() -> list[Sample]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    telemetry = Telemetry(clock=clock)
    telemetry.add(handled)
    telemetry.add_async("queue", read)
    assert b"beneath_queue_ready 7.0" in await telemetry.scrape()
    await clock.advance(10)
    text = await telemetry.scrape()
    assert b"beneath_queue_up 0.0" in text
    assert b"queue_ready" not in text
    assert b"beneath_listener_handled_total" in text


async def test_event_loop_lag_is_measured() -> None:
    class LateClock(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds + 0.25)

    clock = LateClock()
    telemetry = Telemetry(clock=clock)
    watching = asyncio.create_task(telemetry.watch_loop(every=0.5))
    await clock.advance(1.0)
    assert b"beneath_event_loop_lag_seconds 0.25" in await telemetry.scrape()
    watching.cancel()
