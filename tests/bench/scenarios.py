"""What is measured of the contenders: each scenario with its axis, and the values of a whole and a quick run."""

from dataclasses import dataclass, field
from enum import StrEnum

from tests.bench.contenders import BARE, OURS, OUTBOX, PEERS, Contender, Mode
from tests.bench.protocol import Shape

LARGEST_BACKLOG = 100_000_000
"""Bytes of payload in the backlog of a measurement, at most."""

QUICK_SHARE = 4
"""By how much a quick run has fewer events."""


class Measure(StrEnum):
    """What is measured in a scenario."""

    CONSUME = "consume"
    """A backlog is published; then workers handle it."""

    STREAM = "stream"
    """Events are handled while they are published."""

    LATENCY = "latency"
    """From publish to handler at a steady rate, in two processes."""

    PUBLISH = "publish"
    """Events are published, and not handled."""

    START = "start"
    """The application starts a worker, until it is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One table and one plot."""

    name: str
    title: str
    measure: Measure
    contenders: tuple[Contender, ...]
    axis: str = ""
    """What the values count; empty without an axis."""

    whole: tuple[int, ...] = (0,)
    quick: tuple[int, ...] = (0,)
    rounds: int = 2
    """Rounds of a whole run; a quick run has one."""

    mode: Mode = Mode.ONE

    def points(self, *, quick: bool) -> tuple[int, ...]:
        """Return the values of a run."""
        return self.quick if quick else self.whole

    def repeats(self, *, quick: bool) -> int:
        """Return the number of rounds of a run."""
        return 1 if quick else self.rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The amount and kind of work of one measurement."""

    events: int
    deliveries: int
    shape: Shape = field(default_factory=Shape)
    workers: int = 1
    mode: Mode = Mode.MANY


def work(scenario: Scenario, contender: Contender, value: int, *, quick: bool) -> Work:
    """Return the work of one measurement."""
    share = QUICK_SHARE if quick else 1
    count = _rounded(contender.count // share)
    match scenario.name:
        case "backlog":
            return Work(events=value, deliveries=value)
        case "listeners":
            return Work(events=count, deliveries=count, shape=Shape(types=value))
        case "fan_out":
            events = _rounded(count // value)
            return Work(events=events, deliveries=events * value, shape=Shape(fan_out=value))
        case "keys":
            events = max(count, value)
            return Work(events=events, deliveries=events, shape=Shape(keys=value))
        case "payload":
            events = _rounded(min(count, LARGEST_BACKLOG // share // value))
            return Work(events=events, deliveries=events, shape=Shape(payload=value))
        case "delayed":
            return Work(events=value, deliveries=value, shape=Shape(delayed=True), mode=Mode.TOGETHER)
        case "processes":
            return Work(events=4 * count, deliveries=4 * count, workers=value)
    if scenario.measure is Measure.LATENCY:
        return Work(events=value, deliveries=value)
    if scenario.measure is Measure.PUBLISH:
        few = contender.few if scenario.mode is Mode.ONE else contender.few * 5
        return Work(events=_rounded(few // share), deliveries=0, mode=scenario.mode)
    return Work(events=count, deliveries=count)


def _rounded(count: int) -> int:
    """Return a multiple of the size of a batch, which is also the number of publishing tasks."""
    return max(100, count // 100 * 100)


EVERYONE = (*OURS, *BARE, *PEERS)

SCENARIOS = (
    Scenario(
        name="consume",
        title="Handle a backlog with one worker process",
        measure=Measure.CONSUME,
        contenders=EVERYONE,
        rounds=3,
    ),
    Scenario(
        name="latency",
        title="Latency from publish to handler, in two processes, at 200 events a second",
        measure=Measure.LATENCY,
        contenders=EVERYONE,
        whole=(1_000,),
        quick=(200,),
        rounds=3,
    ),
    Scenario(
        name="publish_one",
        title="Publish one by one, each durable before the next",
        measure=Measure.PUBLISH,
        contenders=EVERYONE,
        rounds=3,
        mode=Mode.ONE,
    ),
    Scenario(
        name="publish_many",
        title="Publish in batches of 100",
        measure=Measure.PUBLISH,
        contenders=tuple(each for each in EVERYONE if Mode.MANY in each.modes),
        rounds=3,
        mode=Mode.MANY,
    ),
    Scenario(
        name="publish_together",
        title="Publish from 100 tasks at once",
        measure=Measure.PUBLISH,
        contenders=tuple(each for each in EVERYONE if Mode.TOGETHER in each.modes),
        rounds=3,
        mode=Mode.TOGETHER,
    ),
    Scenario(
        name="backlog",
        title="Growth of the backlog",
        measure=Measure.CONSUME,
        contenders=OURS,
        axis="events in the backlog",
        whole=(1_000, 10_000, 100_000, 1_000_000),
        quick=(1_000, 10_000),
        rounds=1,
    ),
    Scenario(
        name="listeners",
        title="Growth of the number of event types, each with one listener",
        measure=Measure.CONSUME,
        contenders=OURS,
        axis="listeners",
        whole=(1, 10, 50, 200),
        quick=(1, 200),
    ),
    Scenario(
        name="fan_out",
        title="Growth of the number of listeners of one event",
        measure=Measure.CONSUME,
        contenders=OURS,
        axis="listeners of each event",
        whole=(1, 2, 5, 10, 20),
        quick=(1, 10),
    ),
    Scenario(
        name="keys",
        title="Growth of the number of ordering keys, for one ordered listener",
        measure=Measure.CONSUME,
        contenders=OURS,
        axis="ordering keys",
        whole=(10, 100, 1_000, 10_000, 100_000),
        quick=(10, 1_000),
    ),
    Scenario(
        name="payload",
        title="Growth of the payload",
        measure=Measure.CONSUME,
        contenders=OURS,
        axis="bytes of text in each event",
        whole=(100, 1_000, 10_000, 100_000, 1_000_000),
        quick=(100, 100_000),
    ),
    Scenario(
        name="delayed",
        title="Delayed events that all become due at once",
        measure=Measure.CONSUME,
        contenders=OURS,
        axis="delayed events",
        whole=(100_000,),
        quick=(5_000,),
        rounds=1,
    ),
    Scenario(
        name="processes",
        title="Growth of the number of worker processes",
        measure=Measure.CONSUME,
        contenders=OURS,
        axis="worker processes",
        whole=(1, 2, 3, 4),
        quick=(1, 2),
    ),
    Scenario(
        name="outbox",
        title="PostgreSQL with an outbox to Redis: from the commit to the handler, while events are published",
        measure=Measure.STREAM,
        contenders=(OUTBOX,),
        rounds=3,
    ),
    Scenario(
        name="start",
        title="Start of a worker of the whole application",
        measure=Measure.START,
        contenders=(*OURS[1:], OUTBOX),
        rounds=5,
    ),
)
