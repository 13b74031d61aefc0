"""What simulated handlers do: their work, and all the bad things, by a die that each attempt throws anew."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from random import Random

from sqlalchemy import text

from bus import Bus, Delivery, Retry, RetryLater
from infra.db import Database
from tests.simulation.events import Alarm, Chime, Step
from tests.simulation.journal import SimulatedJournal
from tests.simulation.loop import Process
from tests.torture.journal import Kind

SOON = Retry(max_attempts=12, min_delay=0.05, max_delay=0.5)
PATIENT = Retry(max_attempts=1000, min_delay=0.05, max_delay=0.5)
"""For a handler that fails as long as its disk does."""

FEW = Retry(max_attempts=3, min_delay=0.05, max_delay=0.2)
TIMEOUT = 1.5
GOOD_RUN = 5
"""From this run of a delivery on its handler behaves, so that everything comes to its end."""

HOPELESS = 7
"""Every event with this place in its key fails each time for the listener `giving_up`."""


class Unlucky(Exception):
    """A handler's own failure."""


class Unspeakable(Exception):
    """An error that cannot be printed."""

    def __str__(self) -> str:
        raise ValueError("no words for it")

    __repr__ = __str__


class Panic(BaseException):
    """What a native library raises."""


class Listeners:
    """The listeners of one process."""

    def __init__(self, bus: Bus, db: Database | None, journal: SimulatedJournal, process: Process, seed: int) -> None:
        self._db = db
        self._journal = journal
        self._process = process
        self._seed = seed
        bus.add_async_ordered_listener(self.ordered, name="ordered", retry=SOON, timeout=TIMEOUT)
        bus.add_async_listener(self.sibling, name="sibling", retry=SOON, timeout=TIMEOUT)
        bus.add_async_listener(self.threaded, name="threaded", retry=SOON)
        bus.add_async_ordered_listener(self.giving_up, name="giving_up", retry=FEW, timeout=TIMEOUT)
        bus.add_async_listener(self.alarm, name="alarm", retry=SOON, timeout=TIMEOUT)
        bus.add_broadcast_listener(self.chime)
        if db is not None:
            bus.add_async_ordered_listener(self.once, name="once", retry=PATIENT, timeout=4 * TIMEOUT, once=True)

    async def ordered(self, event: Step, delivery: Delivery) -> None:
        await self._act(event, delivery)

    async def sibling(self, event: Step, delivery: Delivery) -> None:
        await self._act(event, delivery)

    def threaded(self, event: Step, delivery: Delivery) -> None:
        with self._written(event, delivery, self._die(event, delivery)) as die:
            if die.random() < 0.1 and self._may_fail(event, delivery):
                raise Unlucky

    async def giving_up(self, event: Step, delivery: Delivery) -> None:
        with self._written(event, delivery, self._die(event, delivery)):
            await asyncio.sleep(0)
            if event.n == HOPELESS:
                raise Unlucky

    async def alarm(self, event: Alarm, delivery: Delivery) -> None:
        await self._act(event, delivery)

    async def chime(self, event: Chime, delivery: Delivery) -> None:
        self._journal.write(self._process, "note", listener="chime", key=event.key, n=event.n, id=delivery.id)

    async def once(self, event: Step, delivery: Delivery) -> None:
        assert self._db is not None
        with self._written(event, delivery, self._die(event, delivery)) as die:
            async with self._db.transaction() as transaction:
                await transaction.session.execute(
                    text("INSERT INTO effect (listener, key, n) VALUES ('once', :key, :n)"),
                    {"key": event.key, "n": event.n},
                )
            if die.random() < 0.1 and self._may_fail(event, delivery):
                raise Unlucky

    async def _act(self, event: Step | Alarm, delivery: Delivery) -> None:
        with self._written(event, delivery, self._die(event, delivery)) as die:
            await asyncio.sleep(die.uniform(0, 0.02))
            if die.random() < 0.3 and self._may_fail(event, delivery):
                await die.choice(FAULTS)(die)
            await asyncio.sleep(0)

    def _die(self, event: Step | Alarm, delivery: Delivery) -> Random:
        run = self._journal.runs[(delivery.listener, event.key, event.n)]
        return Random(f"{self._seed} {delivery.listener} {event.key} {event.n} {run}")

    def _may_fail(self, event: Step | Alarm, delivery: Delivery) -> bool:
        return self._journal.runs[(delivery.listener, event.key, event.n)] < GOOD_RUN

    @contextmanager
    def _written(self, event: Step | Alarm, delivery: Delivery, die: Random) -> Iterator[Random]:
        loop = asyncio.get_running_loop()
        started = loop.time()

        def write(kind: Kind, note: str = "") -> None:
            self._journal.write(
                self._process,
                kind,
                listener=delivery.listener,
                key=event.key,
                n=event.n,
                attempt=delivery.attempt,
                id=delivery.id,
                text=note,
            )

        write("start")
        try:
            yield die
        except (asyncio.CancelledError, RetryLater) as error:
            # Its own cancellation and its timeout are failures; a shutdown's and a deferral are not.
            own = loop.time() - started >= TIMEOUT or error.args == ("own",)
            write("failed" if own else "cancelled", type(error).__name__)
            raise
        except BaseException as error:
            write("failed", type(error).__name__)
            raise
        write("end")


async def _fail(die: Random) -> None:
    raise Unlucky(str(die.random()))


async def _fail_unspeakably(_: Random) -> None:
    raise Unspeakable


async def _hang(_: Random) -> None:
    await asyncio.sleep(1000)


async def _dawdle(die: Random) -> None:
    await asyncio.sleep(die.uniform(0.1, TIMEOUT))


async def _cancel_itself(_: Random) -> None:
    raise asyncio.CancelledError("own")


async def _await_something_cancelled(_: Random) -> None:
    task = asyncio.ensure_future(asyncio.sleep(10))
    task.cancel("own")
    await task


async def _cancel_its_task(_: Random) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel("own")
    await asyncio.sleep(10)


async def _swallow_the_cancellation(_: Random) -> None:
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        await asyncio.sleep(0.2)


async def _fail_instead_of_the_cancellation(_: Random) -> None:
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError as error:
        raise Unlucky("instead of the cancellation") from error


async def _panic(_: Random) -> None:
    raise Panic("native")


async def _fail_severally(_: Random) -> None:
    raise BaseExceptionGroup("several", [Unspeakable(), Panic()])


async def _defer(die: Random) -> None:
    if die.random() < 0.5:
        raise RetryLater(die.uniform(0, 0.5))


FAULTS: list[Callable[[Random], Awaitable[None]]] = [
    _fail,
    _fail,
    _fail,
    _hang,
    _dawdle,
    _dawdle,
    _defer,
    _cancel_itself,
    _await_something_cancelled,
    _swallow_the_cancellation,
    _fail_instead_of_the_cancellation,
    _fail_unspeakably,
    _cancel_its_task,
    _panic,
    _fail_severally,
]
