"""Invalid arguments are refused by the call that is given them, before any listener runs or anything is stored."""

# ruff: noqa: ANN401 - invalid arguments can be of any type

import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from enum import IntEnum, StrEnum
from random import Random
from typing import Any, ClassVar, cast

import msgspec
import pytest

from bus import Bus, BusError, Delivery, Discard, InvalidEvent, InvalidListener, PublishRejected, Retry, RetryLater
from bus.options import BusOptions
from bus.testing import BusKit
from infra.clock import FakeClock
from infra.mq import Features
from infra.mq.drivers.memory import MemoryQueue
from tests.bus.events import Deposited, Ticked, UserCreated, UserUpdated

NOT_TEXT: list[Any] = ["", "nul\0", "\ud800", b"bytes", 7, True, ["a"], "ä" * 1000]


def short(value: object) -> str:
    """Return a short ASCII id for a parameter of any type."""
    return ascii(value)[:60]


def bus() -> Bus:
    return Bus(MemoryQueue(clock=FakeClock()))


async def on_deposit(event: Deposited) -> None: ...


async def on_tick(event: Ticked) -> None: ...


# --- listener options -------------------------------------------------------------------------------------------------


WRONG_OPTIONS: list[dict[str, Any]] = [
    *({"name": each} for each in NOT_TEXT),
    *({"aliases": each} for each in ("mails.confirm", b"x", 5, None, ("a", "a"), (1,), ("",), ("a\0",), ["ä" * 101])),
    *({"retry": each} for each in (None, 3, "full", Retry)),
    *({"timeout": each} for each in (0, -1, math.nan, math.inf, -math.inf, "5", True, timedelta(seconds=5), 1e12)),
    *({"concurrency": each} for each in (0, -1, 1.5, math.nan, "4", True, 10**9)),
    *({"once": each} for each in (1, "yes", None)),
    *({"on_exhausted": each} for each in ("Block", "dead", "", None, True, ["skip"])),
]


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=short)
def test_invalid_listener_option_is_refused_with_the_handlers_name(options: dict[str, Any]) -> None:
    passed: dict[str, Any] = {"name": "deposits", **options}
    with pytest.raises(InvalidListener, match=r"test_arguments\.on_deposit") as refused:
        bus().add_async_ordered_listener(on_deposit, **passed)
    assert next(iter(options)) in str(refused.value) or "a former name" in str(refused.value)


def test_listener_name_cannot_be_its_own_alias() -> None:
    with pytest.raises(InvalidListener, match="present name 'deposits'"):
        bus().add_async_listener(on_deposit, name="deposits", aliases=["deposits"])


def test_default_listener_name_has_the_same_length_limit() -> None:
    async def handle(_self: object, event: Deposited) -> None: ...

    method = "m" * 200
    handle.__name__ = method
    service = type("Service", (), {method: handle})()
    with pytest.raises(InvalidListener, match="the listener's default name"):
        bus().add_async_listener(getattr(service, method))


def test_on_gap_must_be_a_function() -> None:
    with pytest.raises(InvalidListener, match="on_gap must be a function"):
        bus().add_broadcast_listener(on_tick, on_gap=cast("Any", "log"))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_attempts": each} for each in (0, -1, True, 2.0, math.nan, "3", 10**9)),
        *({"min_delay": each} for each in (-1, math.nan, math.inf, "1", None, 1e12)),
        *({"max_delay": each} for each in (-1, math.nan, math.inf, "900", None, 1e12)),
        *({"factor": each} for each in (0.5, math.nan, math.inf, 1e6, "2", True)),
        *({"jitter": each} for each in ("exponential", "Full", "", True, ["full"])),
        *({"delays": each} for each in ("1", 5, None, (1, -1), (math.nan,), (math.inf,), ("1",), (True,), range(2000))),
        *({"after": each} for each in (5, "retry_after", True)),
        *({"cases": each} for each in (None, [ValueError], {"ValueError": Retry()}, {int: Retry()}, {ValueError: 3})),
        *({"cases": {each: Retry()}} for each in (KeyboardInterrupt, BaseException, Discard, RetryLater)),
        {"cases": {ValueError: Retry(cases={KeyError: Retry()})}},
    ],
    ids=short,
)
def test_invalid_retry_argument_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Retry.{next(iter(wrong))}"):
        Retry(**wrong)


def test_retry_cases_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Retry\.cases cannot be read"):
        Retry(cases=cast("Any", Unreadable()))


@pytest.mark.parametrize("formula", [{"min_delay": 2}, {"max_delay": 60}, {"factor": 3}], ids=short)
def test_retry_with_delays_refuses_the_values_of_the_formula(formula: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Retry takes either delays or min_delay, max_delay, factor"):
        Retry(delays=(1, 2), **formula)


def test_retry_with_a_minimum_above_its_maximum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Retry needs min_delay <= max_delay, not 5\.0 and 1\.0"):
        Retry(min_delay=5, max_delay=1)


def test_retry_delay_never_exceeds_max_delay() -> None:
    retry = Retry(max_attempts=1_000_000, factor=100, max_delay=3.0, jitter="none")
    assert retry.delay(999_999, Random(1)) == 3.0


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: each} for name in ("concurrency", "max_payload", "max_crashes") for each in (0, -1, 1.5, "1", True)),
        {"prefetch": -1},
        *(
            {name: each}
            for name in ("max_stall", "renew_every", "recover_every", "connect_timeout", "timeout")
            for each in (0, -1, math.nan, math.inf, "1", True)
        ),
        *({name: each} for name in ("grace", "inbox_retention") for each in (-1, math.nan, math.inf, None)),
    ],
    ids=short,
)
def test_invalid_bus_option_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"BusOptions.{next(iter(wrong))}"):
        BusOptions(**wrong)


class Hostile(str):
    """A string type whose methods raise."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, _other: object) -> bool:
        raise RuntimeError("not comparable")

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        raise RuntimeError("not encodable")


class Name(StrEnum):
    NOTES = "notes"
    FORMER = "former-notes"
    BLOCK = "block"
    FULL = "full"


class Share(float): ...


class Count(IntEnum):
    FOUR = 4


def test_option_values_of_derived_types_are_stored_as_plain_types() -> None:
    retry = Retry(max_attempts=Count.FOUR, min_delay=Share(1), factor=Share(3), jitter=cast("Any", Name.FULL))
    one, two = bus(), bus()
    one.add_async_ordered_listener(
        on_deposit,
        name=Name.NOTES,
        aliases=[Name.FORMER],
        retry=retry,
        timeout=Share(5),
        concurrency=Count.FOUR,
        on_exhausted=cast("Any", Name.BLOCK),
    )
    two.add_async_ordered_listener(on_deposit, name=Hostile("notes"), on_exhausted=cast("Any", Hostile("block")))
    for each in (one, two):
        [listener] = each.listeners
        assert (listener.name, listener.options.on_exhausted) == ("notes", "block")
        assert {type(listener.name), type(listener.options.on_exhausted)} == {str}
        assert type(listener.options.concurrency) is int
        assert type(listener.options.timeout) is float
    assert [type(each) for each in one.listeners[0].options.aliases] == [str]
    values = (retry.max_attempts, retry.min_delay, retry.max_delay, retry.factor, retry.jitter)
    assert [type(each) for each in values] == [int, float, float, float, str]


def test_endless_iterable_of_aliases_is_refused() -> None:
    for names in (itertools.repeat("a"), (str(n) for n in itertools.count())):
        with pytest.raises(InvalidListener, match=r"twice|more than 1000"):
            bus().add_async_listener(on_tick, name="ticks", aliases=names)


# --- event classes ----------------------------------------------------------------------------------------------------


def declare(cls: type) -> None:
    async def handler(event: object) -> None: ...

    handler.__annotations__ = {"event": cls, "return": None}
    bus().add_async_listener(handler, name="x")


def event(fields: dict[str, Any] | None = None, **attributes: Any) -> type:
    cls = type("Odd", (), {"__annotations__": {"n": int} | (fields or {}), **attributes})
    return dataclass(frozen=True)(cls)


@pytest.mark.parametrize(
    "attributes",
    [
        *({"event_name": each} for each in (*NOT_TEXT, "line\nbreak", "x" * 201)),
        *({"event_aliases": each} for each in ("OrderConfirmed", b"x", 5, ("a", "a"), (1,), ("\0",), ("Odd",))),
        *({"event_version": each} for each in (0, -1, True, 1.0, 1.5, "2", 2**40)),
        {"event_upcasters": []},
        {"event_upcasters": {"1": dict}},
        {"event_upcasters": {0: dict}},
        {"event_upcasters": {2: dict}},
        {"event_upcasters": {1: "x"}},
        *({"ordering_key": each} for each in ("n", 5, b"n")),
    ],
    ids=short,
)
def test_invalid_event_class_attribute_is_refused_by_name(attributes: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent, match=f"Odd: .*{next(iter(attributes))}"):
        declare(event(**attributes))


@pytest.mark.parametrize(
    ("version", "upcasters", "gap"),
    [(2, {}, 1), (3, {1: dict}, 2), (3, {2: dict}, 1), (5, {1: dict, 2: dict, 4: dict}, 3), (2**31 - 1, {1: dict}, 2)],
)
def test_event_version_without_its_upcaster_is_refused(version: int, upcasters: dict[int, Any], gap: int) -> None:
    said = rf"Odd: event_upcasters has no upcaster for version {gap}, .* or `{gap}: dict` if"
    with pytest.raises(InvalidEvent, match=said):
        declare(event(event_version=version, event_upcasters=upcasters))


class Opaque: ...


@dataclass(frozen=True)
class Nested:
    inside: "dict[str, Any]"


LOSSY = [
    Any,
    object,
    dict,
    list,
    set,
    tuple,
    dict[str, Any],
    list[object],
    list[dict[str, list[Any]]],
    Any | None,
    Opaque,
    Nested,
    list[Nested],
    Sequence[int],
    dict[str, Sequence[int]],
    AbstractSet[int],
]


@pytest.mark.parametrize("hint", LOSSY, ids=short)
def test_field_type_that_does_not_round_trip_is_refused(hint: Any) -> None:
    with pytest.raises(InvalidEvent, match=r"field \w*data"):
        declare(event({"data": hint}))


class Node(msgspec.Struct, frozen=True):
    children: "list[Node]" = msgspec.field(default_factory=list)
    at: datetime | None = None
    tags: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)


def test_a_field_of_a_recursive_type_is_accepted() -> None:
    declare(Node)


@dataclass(frozen=True)
class Keyed:
    which: str
    event_name: ClassVar[str] = "keyed"

    def ordering_key(self) -> str:
        return cast("str", KEYS[self.which])


@dataclass(frozen=True)
class Timed:
    at: datetime


async def test_aware_datetime_is_decoded_as_the_same_instant_in_utc() -> None:
    got: list[datetime] = []

    async def note(event: Timed) -> None:
        got.append(event.at)

    noon = datetime(2030, 6, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    async with BusKit() as kit:
        kit.bus.add_async_listener(note, name="notes")
        await kit.start()
        await kit.bus.publish_many([Timed(noon), Timed(noon.replace(tzinfo=None))])
        await kit.drain()
    assert got == [noon, noon.replace(tzinfo=None)]
    assert got[0].tzinfo is UTC


@dataclass(frozen=True)
class Picky:
    n: int
    refused: ClassVar[type[Exception] | None] = None

    def __post_init__(self) -> None:
        if self.refused is not None:
            raise self.refused("not read back")


@dataclass(frozen=True)
class Tree:
    children: "list[Tree]"


@pytest.mark.parametrize("error", [RuntimeError, KeyError, ZeroDivisionError, LookupError])
async def test_event_that_cannot_be_decoded_is_refused_for_any_error(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    async with BusKit() as kit:

        async def on_picky(event: Picky) -> None: ...

        async def on_tree(event: Tree) -> None: ...

        kit.bus.add_async_listener(on_picky, name="picky")
        kit.bus.add_async_listener(on_tree, name="tree")
        await kit.start()
        picky, circle = Picky(1), Tree([])
        circle.children.append(circle)
        monkeypatch.setattr(Picky, "refused", error)
        for wrong in (picky, circle):
            with pytest.raises(InvalidEvent, match="cannot be published"):
                await kit.bus.publish(wrong)


class Color(StrEnum):
    RED = "red"


KEYS: dict[str, Any] = {
    "empty": "",
    "nul": "a\0b",
    "surrogate": "\udc80",
    "bytes": b"k",
    "number": 5,
    "none": None,
    "1025 bytes": "k" * 1025,
    "1026 bytes in 513 characters": "ä" * 513,
    "enum": Color.RED,
    "1024 bytes": "ä" * 512,
}


@pytest.mark.parametrize("which", list(KEYS)[:8], ids=short)
async def test_an_ordering_key_is_storable_text_of_at_most_1024_bytes(which: str) -> None:
    async with BusKit() as kit:

        async def on_keyed(event: Keyed) -> None: ...

        kit.bus.add_async_ordered_listener(on_keyed, name="keyed")
        await kit.start()
        with pytest.raises(InvalidEvent, match=r"what keyed.ordering_key\(\) returns must be"):
            await kit.bus.publish(Keyed(which))
        for fine in ("enum", "1024 bytes"):
            await kit.bus.publish(Keyed(fine))
        assert await kit.drain() == 2


async def test_error_in_ordering_key_raises_invalid_event() -> None:
    async with BusKit() as kit:

        async def on_keyed(event: Keyed) -> None: ...

        kit.bus.add_async_ordered_listener(on_keyed, name="keyed")
        await kit.start()
        with pytest.raises(InvalidEvent, match=r"keyed.ordering_key\(\) raised KeyError"):
            await kit.bus.publish(Keyed("missing"))


# --- publishing -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def kit() -> AsyncIterator[BusKit]:
    async with BusKit() as kit:

        async def on_update(event: UserUpdated) -> None: ...

        kit.bus.add_async_listener(on_update, name="updates")
        kit.bus.add_async_listener(on_tick, name="ticks")
        await kit.start()
        yield kit


@pytest.mark.parametrize(
    "delay",
    [math.nan, math.inf, -math.inf, -1, -0.001, timedelta.max, timedelta.min, True, "5", None, 1e10, 10**400, b""],
    ids=short,
)
async def test_a_delay_is_finite_and_at_most_100_years(kit: BusKit, delay: Any) -> None:
    with pytest.raises(InvalidEvent, match="a delay"):
        await kit.bus.publish_delayed(Ticked(1), delay)
    with pytest.raises(ValueError, match="the delay of RetryLater"):
        RetryLater(delay)
    assert await kit.advance(days=400) == 0


@pytest.mark.parametrize(
    "when",
    [
        datetime(2030, 1, 1),  # noqa: DTZ001 - the naive time under test
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
        date(2030, 1, 1),
        1.0,
        "2030-01-01",
        None,
        True,
        timedelta(1),
    ],
    ids=short,
)
async def test_scheduled_time_is_an_aware_datetime_before_the_year_10000(kit: BusKit, when: Any) -> None:
    with pytest.raises(InvalidEvent):
        await kit.bus.publish_scheduled(Ticked(1), when)
    assert await kit.drain() == 0


class OwnCode(tzinfo):
    """A time zone whose `utcoffset` raises, or returns an invalid offset."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def utcoffset(self, _when: object) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def tzname(self, _when: object) -> str:
        return "own"

    def dst(self, _when: object) -> None:
        return None


class NotATime(datetime):
    """A datetime whose timestamp is not a number, like pandas' NaT."""

    def timestamp(self) -> float:
        return math.nan


@pytest.mark.parametrize(
    "when",
    [
        NotATime(2030, 1, 1, tzinfo=UTC),
        *(datetime(2030, 1, 1, tzinfo=OwnCode(each)) for each in (RuntimeError("broken"), timedelta(days=3), 5)),
    ],
    ids=["not a number", "raises", "3 days", "a number"],
)
async def test_datetime_whose_own_code_fails_is_refused(kit: BusKit, when: datetime) -> None:
    with pytest.raises(InvalidEvent, match="cannot be scheduled"):
        await kit.bus.publish_scheduled(Ticked(1), when)
    assert await kit.drain() == 0


@pytest.mark.parametrize("when", [datetime.min.replace(tzinfo=UTC), datetime(1960, 1, 1, tzinfo=UTC)], ids=short)
async def test_scheduled_time_in_the_past_is_due_at_once(kit: BusKit, when: datetime) -> None:
    await kit.bus.publish_scheduled(Ticked(1), when)
    assert await kit.drain() == 1


async def test_the_last_second_of_9999_can_be_scheduled(kit: BusKit) -> None:
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert await kit.bus.cancel(await kit.bus.publish_scheduled(Ticked(1), last))


@pytest.mark.parametrize("bad", [*NOT_TEXT, "line\nbreak", "i" * 257, "€" * 86], ids=short)
async def test_an_id_is_printable_text_of_at_most_256_bytes(kit: BusKit, bad: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: kit.bus.publish(Ticked(1), id=bad),
        lambda: kit.bus.publish_delayed(Ticked(1), 1, id=bad),
        lambda: kit.bus.publish_scheduled(Ticked(1), datetime.now(UTC), id=bad),
        lambda: kit.bus.cancel(bad),
    ]
    for call in calls:
        with pytest.raises(InvalidEvent, match="a message id must be"):
            await call()
    with pytest.raises(InvalidEvent, match="a correlation id must be"):
        kit.bus.correlation(bad)


@pytest.mark.parametrize(
    "headers",
    [
        "text",
        [("a", "b")],
        5,
        {1: "x"},
        {"": "x"},
        {"n": 1},
        {"n": None},
        {"n": b"x"},
        {"n": "\0"},
        {"n\0": "x"},
        {"n": "\ud800"},
        {"\ud800": "x"},
        {"n" * 201: "x"},
        {"beneath-x": "1"},
    ],
    ids=short,
)
async def test_headers_map_storable_text_to_storable_text(kit: BusKit, headers: Any) -> None:
    with pytest.raises(InvalidEvent, match="header"):
        await kit.bus.publish(Ticked(1), headers=headers)
    assert await kit.drain() == 0


class Unreadable(Mapping[str, str]):
    def __getitem__(self, _name: str) -> str:
        raise RuntimeError("broken")

    def __iter__(self) -> Iterator[str]:
        return iter(["name"])

    def __len__(self) -> int:
        return 1


async def test_headers_whose_own_code_fails_are_refused_or_copied(kit: BusKit) -> None:
    with pytest.raises(InvalidEvent, match="headers cannot be read: RuntimeError: broken"):
        await kit.bus.publish(Ticked(1), headers=Unreadable())
    await kit.bus.publish(Ticked(1), headers={"name": Hostile("value"), Hostile("empty"): Hostile("")})
    assert await kit.drain() == 1


@pytest.mark.parametrize("events", [None, 5, Ticked(1)], ids=short)
async def test_publish_many_refuses_values_that_are_not_iterable(kit: BusKit, events: Any) -> None:
    with pytest.raises(InvalidEvent, match="publish_many takes an iterable of events"):
        await kit.bus.publish_many(events)


async def test_headers_are_copied_when_publish_is_called() -> None:
    headers = {"tenant": "acme", "empty": ""}
    got: list[dict[str, str]] = []

    async def change(event: UserUpdated) -> None:
        headers["tenant"] = "other"

    async def note(event: UserUpdated, delivery: Delivery) -> None:
        got.append(dict(delivery.headers))

    async with BusKit() as kit:
        kit.bus.add_sync_listener(change)
        kit.bus.add_async_listener(note, name="notes")
        await kit.start()
        await kit.bus.publish(UserUpdated(), headers=headers)
        await kit.drain()
    assert got == [{"tenant": "acme", "empty": ""}]


async def test_payload_limit_applies_to_the_whole_frame_before_any_listener_runs() -> None:
    seen: list[object] = []

    async def note(event: UserCreated) -> None:
        seen.append(event)

    async with BusKit(options=BusOptions(max_payload=1000)) as kit:
        kit.bus.add_sync_listener(note)
        kit.bus.add_async_listener(note, name="notes")
        await kit.start()
        calls: list[Callable[[], Any]] = [
            lambda: kit.bus.publish(UserCreated(email="x" * 1000)),
            lambda: kit.bus.publish(UserCreated(), headers={"note": "x" * 1000}),
            lambda: kit.bus.publish_many([UserCreated(), UserCreated(email="x" * 1000)]),
        ]
        for publish in calls:
            with pytest.raises(PublishRejected, match="at most 1000 are allowed"):
                await publish()
        assert seen == []


class SmallQueue(MemoryQueue):
    @property
    def features(self) -> Features:
        return replace(super().features, max_body=500)


async def test_smaller_payload_limit_of_bus_and_queue_applies() -> None:
    clock = FakeClock()
    mq = SmallQueue(clock=clock)
    await mq.open()
    small = Bus(mq, clock=clock)
    small.add_async_listener(on_tick, name="ticks")
    await small.start()
    await small.publish(Ticked(1), headers={"note": "x" * 300})
    with pytest.raises(PublishRejected, match="at most 500 are allowed"):
        await small.publish(Ticked(1), headers={"note": "x" * 600})
    await small.close()
    await mq.close()


async def test_same_id_on_two_event_classes_is_no_duplicate(kit: BusKit) -> None:
    await kit.bus.publish(Ticked(1), id="seven")
    await kit.bus.publish(UserUpdated(), id="seven")
    await kit.bus.publish(UserUpdated(), id="seven")
    assert await kit.drain() == 2


async def test_values_that_are_not_events_are_refused(kit: BusKit) -> None:
    for wrong in ("text", 5, None, {"a": 1}):
        with pytest.raises(InvalidEvent, match="is not an event"):
            await kit.bus.publish(wrong)
    for cls in (Ticked, UserCreated):
        with pytest.raises(BusError):
            await kit.bus.publish(cls)
