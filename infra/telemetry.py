"""Metrics for Prometheus, read through functions that the owner of each metric registers."""

import asyncio
import platform
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.clock import Clock, SystemClock

NAMESPACE = "beneath"

READ_TIMEOUT = 2.0
"""Seconds after which a source that does not answer counts as unavailable."""

SampleKind = Literal["counter", "gauge"]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric. `name` has neither the namespace nor, for a counter, the suffix `_total`."""

    name: str
    help: str
    kind: SampleKind
    value: float
    labels: Labels


class Telemetry:
    """The metrics of one process, in a registry of their own."""

    def __init__(self, *, version: str = "", clock: Clock | None = None, max_age: float = 3.0) -> None:
        """Reuse the answers of async sources that are at most `max_age` seconds old."""
        self.registry = CollectorRegistry()
        self._clock = clock or SystemClock()
        self._max_age = max_age
        self._readings: list[_Reading] = []
        self._refreshing = asyncio.Lock()
        self._lag = Gauge(
            f"{NAMESPACE}_event_loop_lag_seconds",
            "Seconds by which the event loop was late to resume a task, at the latest measurement.",
            registry=self.registry,
        )
        self.registry.register(_BuildInfo(version))

    def add(self, read: Callable[[], Iterable[Sample]]) -> None:
        """Add the samples that `read` returns, which is called at every scrape."""
        self.registry.register(_Samples(read))

    def add_async(self, name: str, read: Callable[[], Awaitable[Sequence[Sample]]]) -> None:
        """Add the samples that `read` returns; it is awaited before a scrape unless its last answer is recent enough.

        While `read` fails or takes longer than `READ_TIMEOUT`, its samples are left out and the gauge `<name>_up` is 0.
        """
        reading = _Reading(name, read)
        self._readings.append(reading)
        self.registry.register(_Samples(reading.samples))

    async def scrape(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
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
    """An async source of samples, with its latest answer."""

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
        with suppress(Exception):  # shown as `<name>_up 0`: a scrape must also answer while a source is unavailable
            async with asyncio.timeout(READ_TIMEOUT):
                self._latest = await self._read()

    def samples(self) -> Iterable[Sample]:
        up = Sample(
            f"{self._name}_up",
            "1 if this source answered at the latest read, else 0; while 0, its other metrics are missing.",
            "gauge",
            self._latest is not None,
            {},
        )
        return (up, *(self._latest or ()))


class _Samples(Collector):
    """A collector that reads samples at a scrape and groups them by name, as the format requires."""

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return no metrics: the sources may not be readable at registration."""
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
    """A collector of the versions that run."""

    def __init__(self, version: str) -> None:
        self._labels = {"version": version, "python": platform.python_version()}

    def collect(self) -> Iterable[Metric]:
        info = InfoMetricFamily(f"{NAMESPACE}_build", "The version of the application and of Python.")
        info.add_metric([], self._labels)
        return (info,)
