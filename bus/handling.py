"""What becomes of one delivery: run its handler, and decide how it ends."""

import asyncio
import functools
import traceback
from collections.abc import Callable
from random import Random
from types import FrameType
from typing import Any

import structlog
from msgspec.structs import replace

from bus.broadcasts import delivery_of
from bus.codec import Frame, unpack
from bus.delivery import Delivery as HandlerDelivery
from bus.delivery import enter_cause
from bus.errors import Discard, RetryLater, UndecodablePayload, UnknownEvent
from bus.events import EventType
from bus.inbox import AlreadyHandled, Inbox
from bus.listeners import Listener
from bus.metrics import ListenerMetrics
from bus.threads import ThreadPool
from infra.clock import Clock
from infra.mq import Claim, Delivery, Failure, Outcome, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FOREVER = float("inf")
MAX_TRACEBACK = 16_384
"""How much of a traceback is kept with a failure, in characters; the end says most."""


LEAVES_IN_MAILBOX = frozenset({Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.BLOCK})
"""Ends after which a delivery is still its mailbox's head."""


def release(claim: Claim, delivery: Delivery, delay: float = 0.0) -> Settlement:
    """Return the settlement that gives a claim back, unchanged, from `delivery` on."""
    return Settlement(claim=claim, delivery=delivery, outcome=Outcome.RELEASE, delay=delay, close=claim.ordered)


class HandlerTimeout(Exception):
    """A handler took longer than its listener's timeout."""


class HandlerCancelled(Exception):
    """A handler ended in a cancellation that nobody here asked for."""


class Slot:
    """One place to run handlers in: a task that takes one claim after another."""

    __slots__ = ("claim", "complained", "deadline", "in_thread", "listener", "started", "stopping", "task", "timed_out")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.task: asyncio.Task[None] | None = None
        self.claim: Claim | None = None
        self.started = 0.0
        self.deadline = FOREVER
        self.timed_out = False
        self.stopping = False
        self.complained = False
        self.in_thread = False

    def interrupt(self) -> None:
        """Cancel the handler that runs here because its time is up."""
        self.timed_out = True
        self.deadline = FOREVER
        if self.task is not None:
            self.task.cancel()


class Handling:
    """The policy of one worker: attempts, backoff, dead letters, parking, the inbox."""

    def __init__(
        self,
        events: dict[str, EventType],
        inbox: Inbox | None,
        clock: Clock,
        threads: ThreadPool,
        random: Random,
        *,
        max_crashes: int,
    ) -> None:
        self._events = events
        self._inbox = inbox
        self._clock = clock
        self._threads = threads
        self._random = random
        self._max_crashes = max_crashes

    async def run(
        self,
        slot: Slot,
        claim: Claim,
        metrics: ListenerMetrics,
        settle: Callable[[Settlement], None],
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        """Run a claim's deliveries in order and hand every end to `settle`.

        Raises:
            asyncio.CancelledError: the worker stops; what had not ended was released, or stays with its thread.
        """
        slot.claim = claim
        last = claim.deliveries[-1]
        for delivery in claim.deliveries:
            if not may_begin():
                settle(release(claim, delivery))
                break
            try:
                settlement = await self.handle(slot, claim, delivery, metrics)
            except asyncio.CancelledError:
                if not slot.in_thread:
                    settle(release(claim, delivery))
                    slot.claim = None
                raise
            leaves = settlement.outcome in LEAVES_IN_MAILBOX
            settle(replace(settlement, close=True) if claim.ordered and (leaves or delivery is last) else settlement)
            if leaves:
                break
        slot.claim = None

    async def handle(self, slot: Slot, claim: Claim, delivery: Delivery, metrics: ListenerMetrics) -> Settlement:
        """Run the handler on one delivery and return how it ends.

        Raises:
            asyncio.CancelledError: the worker stops; the delivery has not ended.
        """
        if delivery.crashes >= self._max_crashes:
            return self._killer(claim, delivery, metrics)
        listener = slot.listener
        try:
            frame = unpack(delivery.body)
            event = self._decode(frame)
        except UnknownEvent as unknown:
            metrics.parked += 1
            log.warning("parked: this code does not know the event", listener=listener.name, reason=str(unknown))
            return Settlement(claim=claim, delivery=delivery, outcome=Outcome.PARK)
        except UndecodablePayload as error:
            return self._failed(slot, claim, delivery, error, metrics)
        context = delivery_of(frame, listener.name, delivery.failures + 1)
        started = self._clock.monotonic()
        metrics.lag_seconds = max(0.0, self._clock.time() - frame.published_at)
        enter_cause(context)
        try:
            await self._run(slot, event, context, started)
        except AlreadyHandled:
            pass
        except RetryLater as later:
            metrics.deferred += 1
            return Settlement(claim=claim, delivery=delivery, outcome=Outcome.DEFER, delay=later.delay)
        except Discard as discard:
            metrics.discarded += 1
            log.info("discarded by its listener", reason=discard.reason)
        except Exception as error:  # noqa: BLE001 - a handler may raise anything; all of it is a failed attempt
            return self._failed(slot, claim, delivery, error, metrics)
        finally:
            enter_cause(None)
            metrics.busy_seconds += self._clock.monotonic() - started
        metrics.handled += 1
        return Settlement(claim=claim, delivery=delivery, outcome=Outcome.DONE)

    def _decode(self, frame: Frame) -> Any:  # noqa: ANN401 - any event class
        event_type = self._events.get(frame.event)
        if event_type is None:
            raise UnknownEvent(f"no class here has the wire name {frame.event!r}")
        if frame.event_version > event_type.version:
            raise UnknownEvent(
                f"{frame.event} version {frame.event_version} is newer than this code's {event_type.version}"
            )
        return event_type.decode(frame.payload, frame.event_version)

    async def _run(self, slot: Slot, event: object, context: HandlerDelivery, started: float) -> None:
        listener = slot.listener
        slot.started = started
        slot.timed_out = False
        slot.complained = False
        slot.deadline = FOREVER if listener.timeout is None else started + listener.timeout
        try:
            if listener.once:
                await self._run_once(listener, event, context)
            else:
                await self._call(slot, event, context)
        except asyncio.CancelledError:
            raise _reason(slot) from None
        finally:
            slot.deadline = FOREVER
        if slot.timed_out and slot.task is not None:
            slot.task.uncancel()  # it finished in spite of the cancellation: a success is a success

    async def _run_once(self, listener: Listener, event: object, context: HandlerDelivery) -> None:
        assert self._inbox is not None  # noqa: S101 - registration refuses once=True without a database
        if await self._inbox.handled((listener.name, *listener.aliases), context.id):
            raise AlreadyHandled(context.id)
        async with self._inbox.once(listener.name, context.id):
            result = listener.call(event, context)
            if result is not None:
                await result

    async def _call(self, slot: Slot, event: object, context: HandlerDelivery) -> None:
        listener = slot.listener
        if not listener.is_async:
            slot.in_thread = True
            await self._threads.run(functools.partial(listener.call, event, context))
            slot.in_thread = False
            return
        result = listener.call(event, context)
        if result is not None:
            await result

    def _failed(
        self, slot: Slot, claim: Claim, delivery: Delivery, error: Exception, metrics: ListenerMetrics
    ) -> Settlement:
        listener = slot.listener
        slot.in_thread = False
        failures = delivery.failures + 1
        failure = Failure(error=describe(error), traceback=_traceback(error))
        metrics.failed += 1
        if isinstance(error, HandlerTimeout):
            metrics.timed_out += 1
        delay = listener.retry.delay(failures, self._random)
        fields = {
            "listener": listener.name,
            "event_name": delivery.event,
            "event_id": delivery.message_id,
            "attempt": failures,
            "error": failure.error,
        }
        exc_info = None if isinstance(error, HandlerTimeout | UndecodablePayload) else error
        if delay is not None:
            log.warning("listener failed", retry_in=round(delay, 3), exc_info=exc_info, **fields)
            return Settlement(claim=claim, delivery=delivery, outcome=Outcome.RETRY, delay=delay, failure=failure)
        if claim.ordered and listener.on_exhausted == "block":
            log.error(
                "listener failed for good: its key is blocked", key=claim.ordering_key, exc_info=exc_info, **fields
            )
            return Settlement(claim=claim, delivery=delivery, outcome=Outcome.BLOCK, failure=failure)
        metrics.dead += 1
        log.error("listener failed for good: dead letter", exc_info=exc_info, **fields)
        return Settlement(claim=claim, delivery=delivery, outcome=Outcome.DEAD, failure=failure)

    def _killer(self, claim: Claim, delivery: Delivery, metrics: ListenerMetrics) -> Settlement:
        metrics.dead += 1
        failure = Failure(error=f"its worker died {delivery.crashes} times while this ran alone")
        log.error(
            "dead letter: it kills its workers",
            listener=claim.subscription,
            event_name=delivery.event,
            event_id=delivery.message_id,
            crashes=delivery.crashes,
        )
        return Settlement(claim=claim, delivery=delivery, outcome=Outcome.DEAD, failure=failure, charge=False)


def _reason(slot: Slot) -> BaseException:
    """Say why a handler was cancelled: its time was up, the worker stops, or it did so itself."""
    task = asyncio.current_task()
    if slot.timed_out and not slot.stopping:
        if task is not None:
            task.uncancel()
        return HandlerTimeout(f"took longer than its timeout of {slot.listener.timeout:g} s")
    if slot.stopping or (task is not None and task.cancelling()):
        return asyncio.CancelledError()
    return HandlerCancelled("something that the handler awaited was cancelled")


def describe(error: BaseException) -> str:
    """Return an error's class and message in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


_CALLERS = {Handling._call.__code__, Handling._run_once.__code__}  # noqa: SLF001 - this module's own


def running_listener(frame: FrameType) -> str | None:
    """Name the listener that `frame` runs, if it is the frame that calls handlers."""
    if frame.f_code in _CALLERS:
        slot = frame.f_locals.get("slot")
        listener = slot.listener if isinstance(slot, Slot) else frame.f_locals.get("listener")
        return listener.name if isinstance(listener, Listener) else None
    return None


def _traceback(error: Exception) -> str:
    if isinstance(error, HandlerTimeout):
        return ""
    return "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
