"""One measurement: the processes of one contender in one scenario, and the figures that they report."""

from contextlib import ExitStack
from statistics import median

from tests.bench.application import started
from tests.bench.children import Child, MeasurementFailed, wait_until
from tests.bench.contenders import Contender
from tests.bench.environments import interpreter
from tests.bench.places import Place, Places
from tests.bench.protocol import Job, Shape
from tests.bench.scenarios import Measure, Scenario, Work

Figures = dict[str, float]
"""The figures of one measurement by name; `UNITS` has all names."""

UNITS = {
    "rate": "events per second",
    "cpu_us": "CPU microseconds of all workers for each event",
    "server_cpu_us": "CPU microseconds of all servers for each event",
    "memory_mb": "peak of resident memory of a worker, in MB",
    "server_memory_mb": "memory of all servers when the events are handled, in MB",
    "backlog_mb": "memory of all servers for the backlog, in MB",
    "start_s": "seconds from the start of the process to its first handled event, or until it is ready",
    "first_ms": "latency of the first event, in ms",
    "p50_ms": "median of the latency, in ms",
    "p90_ms": "90th percentile of the latency, in ms",
    "p99_ms": "99th percentile of the latency, in ms",
    "max_ms": "longest latency, in ms",
}


def measure(places: Places, scenario: Scenario, contender: Contender, work: Work) -> Figures:
    """Carry out one measurement.

    Raises:
        MeasurementFailed: a process failed, or did not answer in time.
        NotInstalled: the contender's environment cannot be made.
    """
    runner = _Runner(places, contender, work)
    match scenario.measure:
        case Measure.CONSUME if contender.one_process:
            return runner.loop()
        case Measure.CONSUME:
            return runner.consume()
        case Measure.STREAM:
            return runner.stream()
        case Measure.LATENCY:
            return runner.latency()
        case Measure.PUBLISH:
            return runner.publish()
        case Measure.START:
            return runner.start()


class _Runner:
    """The steps of measurements on a fresh queue."""

    def __init__(self, places: Places, contender: Contender, work: Work) -> None:
        self._contender = contender
        self._work = work
        self._python = interpreter(contender.environment)
        # The application's own tables are made by its command.
        self._place = places.fresh(contender.server, contender.environment or "ours", self._prepare)

    def loop(self) -> Figures:
        """Publish a backlog and handle it in one process."""
        with self._child(self._place, "loop", self._work.events) as child:
            wait_until([child], lambda: child.answers.get("handled", 0) >= self._work.deliveries)
            return self._handled([child])

    def consume(self) -> Figures:
        """Publish a backlog; then start workers, and wait until they have handled it."""
        place, work = self._place, self._work
        empty = place.usage()
        self._publish(work.events, str(work.mode), work.shape)
        before = place.usage()
        with ExitStack() as stack:
            several = work.workers > 1
            workers = [
                stack.enter_context(self._child(place, "work", work.deliveries, shape=work.shape, wait=several))
                for _ in range(work.workers)
            ]
            if several:
                wait_until(workers, lambda: all("ready" in child.answers for child in workers))
                for child in workers:
                    child.go()
            wait_until(workers, lambda: _handled(workers) >= work.deliveries)
            figures = self._handled(workers)
        if empty is not None and before is not None:
            figures["backlog_mb"] = max(0.0, before.memory - empty.memory)
            figures |= self._served(place, before.cpu, work.deliveries)
        return figures

    def stream(self) -> Figures:
        """Publish while a worker handles."""
        place, work = self._place, self._work
        self._publish(100, "many", work.shape)
        with self._child(place, "work", 100 + work.deliveries, shape=work.shape) as worker:
            wait_until([worker], lambda: worker.answers.get("handled", 0) >= 100)
            before = place.usage()
            with self._child(place, "publish", work.events, mode="many", shape=work.shape) as publisher:
                wait_until([worker], lambda: worker.answers.get("handled", 0) >= 100 + work.deliveries)
                published = publisher.finish()
            figures = self._handled([worker])
        figures["rate"] = work.deliveries / (worker.answers["last"] - publisher.spawned)
        del figures["start_s"]
        figures["cpu_us"] += published["cpu"] / work.events * 1e6
        if before is not None:
            figures |= self._served(place, before.cpu, work.deliveries)
        return figures

    def latency(self) -> Figures:
        """Publish at a steady rate in one process, and handle in another one that is idle before."""
        place, work = self._place, self._work
        self._publish(1, "one", Shape())
        with self._child(place, "work", 1 + work.events) as worker:
            wait_until([worker], lambda: worker.answers.get("handled", 0) >= 1)
            used = worker.answers["cpu"]
            before = place.usage()
            with self._child(place, "pace", work.events) as publisher:
                wait_until([worker], lambda: "latencies" in worker.answers)
                publisher.finish()
            taken = [seconds * 1e3 for seconds in worker.answers["latencies"]]
            figures = {**_percentiles(taken), "cpu_us": (worker.answers["cpu"] - used) / work.events * 1e6}
        if before is not None:
            figures |= self._served(place, before.cpu, work.events)
        return figures

    def publish(self) -> Figures:
        """Publish without a worker."""
        before = self._place.usage()
        answers = self._publish(self._work.events, str(self._work.mode), self._work.shape)
        figures = {
            "rate": answers["published"] / answers["seconds"],
            "cpu_us": answers["cpu"] / answers["published"] * 1e6,
            "memory_mb": answers["memory"],
        }
        if before is not None:
            figures |= self._served(self._place, before.cpu, self._work.events)
        return figures

    def start(self) -> Figures:
        """Start the application's worker."""
        return started(self._place.url, self._place.broker)

    def _publish(self, count: int, mode: str, shape: Shape) -> Figures:
        with self._child(self._place, "publish", count, mode=mode, shape=shape) as publisher:
            return publisher.finish()

    def _prepare(self, url: str) -> None:
        with self._child(Place(url, None, ()), "prepare", 0) as child:
            child.finish()

    def _child(
        self, place: Place, role: str, count: int, *, mode: str = "many", shape: Shape | None = None, wait: bool = False
    ) -> Child:
        job = Job(
            role=role, url=place.url, broker=place.broker, count=count, mode=mode, shape=shape or Shape(), wait=wait
        )
        return Child(self._python, self._contender.module, job)

    def _handled(self, workers: list[Child]) -> Figures:
        answers = [child.answers for child in workers if child.answers.get("handled")]
        handled = _handled(workers)
        first = min(each["first"] for each in answers)
        return {
            "rate": handled / (max(each["last"] for each in answers) - first),
            "cpu_us": sum(each["cpu"] for each in answers) / handled * 1e6,
            "memory_mb": max(each["memory"] for each in answers),
            "start_s": first - min(child.spawned for child in workers),
        }

    def _served(self, place: Place, cpu_before: float, count: int) -> Figures:
        after = place.usage()
        if after is None:
            return {}
        return {"server_cpu_us": (after.cpu - cpu_before) / count * 1e6, "server_memory_mb": after.memory}


def _handled(workers: list[Child]) -> int:
    return sum(int(child.answers.get("handled", 0)) for child in workers)


def _percentiles(taken: list[float]) -> Figures:
    """Return the figures of latencies in ms, in order of publish; the first event is reported on its own."""
    if len(taken) < 2:
        raise MeasurementFailed(f"{len(taken)} latencies were reported")
    first, ordered = taken[0], sorted(taken[1:])
    return {
        "first_ms": first,
        "p50_ms": median(ordered),
        "p90_ms": ordered[int(len(ordered) * 0.90)],
        "p99_ms": ordered[int(len(ordered) * 0.99)],
        "max_ms": ordered[-1],
    }
