"""Metrics for Prometheus. It knows no bus and no queue: whoever has numbers hands in a function that reads them."""

import asyncio
import platform
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from infra.clock import Clock, SystemClock

CONTENT_TYPE = CONTENT_TYPE_LATEST
NAMESPACE = "beneath"

READ_TIMEOUT = 2.0
"""Seconds after which a source that does not answer counts as down."""

Kind = Literal["counter", "gauge"]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One number, by its name without the namespace; counters get their `_total` by themselves."""

    name: str
    help: str
    kind: Kind
    value: float
    labels: Labels


class Telemetry:
    """The metrics of one container, in a registry of their own."""

    def __init__(self, *, version: str = "", clock: Clock | None = None, max_age: float = 3.0) -> None:
        """Answer scrapes with async readings at most `max_age` seconds old."""
        self.registry = CollectorRegistry()
        self._clock = clock or SystemClock()
        self._max_age = max_age
        self._readings: list[_Reading] = []
        self._refreshing = asyncio.Lock()
        self._lag = Gauge(
            f"{NAMESPACE}_event_loop_lag_seconds",
            "How late the event loop woke a sleeper, in seconds, at the latest look.",
            registry=self.registry,
        )
        self.registry.register(_BuildInfo(version))

    def add(self, read: Callable[[], Iterable[Sample]]) -> None:
        """Call `read` at every scrape."""
        self.registry.register(_Samples(read))

    def add_async(self, name: str, read: Callable[[], Awaitable[Sequence[Sample]]]) -> None:
        """Await `read` before a scrape, unless its last answer is young enough.

        While it fails, its samples are left out and the gauge `<name>_up` is 0.
        """
        reading = _Reading(name, read)
        self._readings.append(reading)
        self.registry.register(_Samples(reading.samples))

    async def scrape(self) -> bytes:
        """Return everything in Prometheus's text format."""
        async with self._refreshing:
            now = self._clock.monotonic()
            for reading in self._readings:
                await reading.refresh(now, self._max_age)
        return generate_latest(self.registry)

    async def watch_loop(self, every: float = 0.5) -> None:
        """Measure the event loop's lag every `every` seconds, until cancelled."""
        while True:
            before = self._clock.monotonic()
            await self._clock.sleep(every)
            self._lag.set(max(0.0, self._clock.monotonic() - before - every))


class _Reading:
    """The latest answer of an async source."""

    def __init__(self, name: str, read: Callable[[], Awaitable[Sequence[Sample]]]) -> None:
        self._name = name
        self._read = read
        self._read_at = float("-inf")
        self._latest: Sequence[Sample] | None = None

    async def refresh(self, now: float, max_age: float) -> None:
        if now - self._read_at < max_age:
            return
        self._read_at = now
        self._latest = None
        with suppress(Exception):  # shown as `<name>_up 0`: a scrape must answer when what it watches is down
            async with asyncio.timeout(READ_TIMEOUT):
                self._latest = await self._read()

    def samples(self) -> Iterable[Sample]:
        up = Sample(
            f"{self._name}_up",
            "1 if it answered at the latest read, else 0; while 0, its other metrics are missing.",
            "gauge",
            self._latest is not None,
            {},
        )
        return (up, *(self._latest or ()))


class _Samples(Collector):
    """Reads samples at a scrape, grouped by name as the format wants them."""

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Name nothing ahead: reading may not be possible yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for sample in self._read():
            name = f"{NAMESPACE}_{sample.name}"
            family = families.get(name)
            if family is None:
                new = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
                family = families[name] = new(name, sample.help)
            suffix = "_total" if sample.kind == "counter" else ""
            family.add_sample(name + suffix, dict(sample.labels), sample.value)
        return families.values()


class _BuildInfo(Collector):
    def __init__(self, version: str) -> None:
        self._labels = {"version": version, "python": platform.python_version()}

    def collect(self) -> Iterable[Metric]:
        info = InfoMetricFamily(f"{NAMESPACE}_build", "What runs here.")
        info.add_metric([], self._labels)
        return (info,)
