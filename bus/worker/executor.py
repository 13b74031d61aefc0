"""The executor of deliveries: decodes the event, calls the handler, and passes the outcome to the settler."""

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from random import Random
from types import CoroutineType, FrameType
from typing import Any

import structlog
from msgspec.structs import replace

from bus.codec import Frame, decode_frame
from bus.delivery import Delivery, delivery_of, enter_cause
from bus.errors import UnknownEvent
from bus.events import EventType
from bus.handler_calls import refuse_generator, run_in_context
from bus.metrics import ListenerMetrics
from bus.middleware import Middleware, call_through
from bus.worker.caller import Caller
from bus.worker.claim_limits import CLAIM_LIMITS, RUN_TIME
from bus.worker.inbox import AlreadyHandled, Inbox
from bus.worker.logged_tracebacks import LoggedTracebacks
from bus.worker.outcomes import Attempt, Expired, Parked, outcome_of, release, timeout_of
from bus.worker.slot import FOREVER, Slot
from bus.worker.threads import ThreadPool
from infra.clock import Clock
from infra.failures import describe
from infra.mq import Claim, ClaimedDelivery, Failure, Outcome, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

DEFECT_DELAY = 1.0
"""Seconds after which a delivery is retried whose attempt failed by a defect of the bus."""

UNDECIDED_DELAY = 5.0
"""Seconds after which an exhausted `once` delivery is retried because the inbox could not be read."""

DONE = Outcome.DONE

EXHAUSTED = frozenset({Outcome.DEAD, Outcome.BLOCK})
"""Outcomes after which only an operator can cause a further attempt."""

STAYS_HEAD = frozenset({Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.BLOCK})
"""Outcomes after which a delivery is still its mailbox's head."""


class Executor:
    """Runs the deliveries of claims, and determines their settlements."""

    def __init__(
        self,
        events: dict[str, EventType],
        inbox: Inbox | None,
        clock: Clock,
        threads: ThreadPool,
        random: Random,
        *,
        middleware: Mapping[str, Sequence[Middleware]],
        queue_time: Callable[[], float],
        max_crashes: int,
    ) -> None:
        self._events = events
        self._inbox = inbox
        self._clock = clock
        self._caller = Caller(threads)
        self._random = random
        self._middleware = middleware
        self._queue_time = queue_time
        self._max_crashes = max_crashes
        self._logged = LoggedTracebacks()

    async def run(
        self,
        slot: Slot,
        claim: Claim,
        metrics: ListenerMetrics,
        settle: Callable[[Settlement], None],
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        """Run a claim's deliveries in order, and pass each settlement to `settle`.

        `may_begin` is called before each delivery but the first; where it returns False the rest of the claim is
        released, and so is the rest of a long claim after `RUN_TIME`. The errors of handlers are not raised. On return
        `slot.claim` is None unless the claim stays unsettled: for a thread that still runs, or for the crash that
        follows from `slot.exit`.

        Raises:
            BaseException: in a test kit alone, the cancellation or the exit of the kit's task.
        """
        slot.claim = claim
        last, is_long = claim.deliveries[-1], len(claim.deliveries) > CLAIM_LIMITS.mailbox_batch
        ends_at = self._clock.monotonic() + RUN_TIME if is_long else FOREVER
        for nth, delivery in enumerate(claim.deliveries):
            if nth and not (may_begin() and (nth % CLAIM_LIMITS.mailbox_batch or self._clock.monotonic() < ends_at)):
                settle(release(claim, delivery))
                break
            try:
                settlement = await self.handle(slot, claim, delivery, metrics)
            except BaseException:
                # A test kit ends, or the bus has a defect: without a release the claim would stay unsettled.
                settle(release(claim, delivery, DEFECT_DELAY))
                slot.claim = None
                raise
            if settlement is None:
                return
            stays = settlement.outcome is not DONE and settlement.outcome in STAYS_HEAD
            settle(replace(settlement, close=True) if claim.ordered and (stays or delivery is last) else settlement)
            if stays or slot.exit is not None:
                if not stays and delivery is not last:
                    settle(release(claim, claim.deliveries[nth + 1]))
                break
        slot.claim = None

    async def handle(
        self, slot: Slot, claim: Claim, delivery: ClaimedDelivery, metrics: ListenerMetrics
    ) -> Settlement | None:
        """Run the handler on one delivery and return the settlement, None if the claim stays unsettled."""
        if delivery.crashes >= self._max_crashes:
            return await self._unless_committed(slot, self._crashed(claim, delivery), metrics)
        # Context variables that a handler sets must not reach the next delivery.
        context = contextvars.copy_context()
        started = self._clock.monotonic()
        slot.begin(started)
        attempt = self._attempt(slot, delivery, metrics)
        try:
            try:
                waits_for = context.run(attempt.send, None)
            except StopIteration:
                pass  # the attempt ended without awaiting anything
            else:
                slot.on_waiting()
                await run_in_context(context, attempt, waits_for)
        except BaseException as error:
            if _ends_caller(slot, error):
                raise
            failed = Attempt(slot, claim, delivery, metrics, context, self._logged)
            settlement = outcome_of(failed, error, self._random)
        else:
            metrics.handled += 1
            settlement = Settlement(claim=claim, delivery=delivery, outcome=DONE)
        finally:
            slot.deadline, slot.delivery = FOREVER, None
            metrics.busy_seconds += self._clock.monotonic() - started
        task = slot.task
        if task is not None and task.cancelling() and not slot.is_stopping:
            await _absorb_cancellation(task)
        if settlement is not None and settlement.outcome is not DONE and settlement.outcome in EXHAUSTED:
            return await self._unless_committed(slot, settlement, metrics)
        return settlement

    async def _attempt(self, slot: Slot, delivery: ClaimedDelivery, metrics: ListenerMetrics) -> None:
        """Decode a delivery and call the handler; runs in the delivery's own context."""
        listener = slot.listener
        try:
            frame = decode_frame(delivery.body)
        except UnknownEvent as unknown:
            raise Parked(str(unknown), unknown.needs) from None
        max_attempts = listener.options.retry.max_attempts
        context = slot.delivery = delivery_of(frame, listener.name, delivery.failures + 1, max_attempts)
        enter_cause(context)
        if context.expires_at is not None and context.expires_at <= self._queue_time():
            raise Expired
        event = self._decode(frame)
        metrics.lag_seconds = max(0.0, self._clock.time() - frame.published_at)
        if self._middleware and (layers := self._middleware.get(listener.name)):
            await call_through(layers, event, context, partial(self._call_in_middleware, slot, event, context))
        elif listener.is_async and not listener.options.once:
            result: object = listener.call(event, context)
            while result is not None and (type(result) is CoroutineType or isawaitable(result)):
                result = await result
            if result is not None:
                refuse_generator(result)
        else:
            await self._call(slot, event, context)

    def _decode(self, frame: Frame) -> Any:  # noqa: ANN401 - any event class
        event_type = self._events.get(frame.event)
        if event_type is None:
            raise Parked(f"this code has no event class with the wire name {frame.event!r}")
        if frame.event_version > event_type.version:
            raise Parked(
                f"{frame.event} version {frame.event_version} is newer than this code's {event_type.version}",
                needs=f"{frame.event}@{frame.event_version}",
            )
        return event_type.decode(frame.payload, frame.event_version)

    async def _call_in_middleware(self, slot: Slot, event: object, context: Delivery) -> None:
        """Call the handler; raise a timeout as such, because to middleware a cancellation could be a shutdown."""
        try:
            await self._call(slot, event, context)
        except asyncio.CancelledError:
            if slot.timed_out and not slot.is_stopping:
                raise timeout_of(slot) from None
            raise

    async def _call(self, slot: Slot, event: object, context: Delivery) -> None:
        if slot.listener.options.once:
            await self._call_once(slot, event, context)
        else:
            await self._caller.call(slot, event, context)

    async def _call_once(self, slot: Slot, event: object, context: Delivery) -> None:
        assert self._inbox is not None  # noqa: S101 - registration refuses once=True without a database
        listener = slot.listener
        if await self._inbox.handled(listener.names, context.id):
            raise AlreadyHandled(context.id)

        def committed() -> None:
            slot.committed = True

        async with self._inbox.once(listener.name, context.id, committed):
            await self._caller.call(slot, event, context)

    async def _unless_committed(self, slot: Slot, settlement: Settlement, metrics: ListenerMetrics) -> Settlement:
        """Return `settlement`, or the settlement of a handled delivery if its `once` handler has committed.

        That can happen before a crash, or when the answer to COMMIT is lost.
        """
        claim, delivery, listener = settlement.claim, settlement.delivery, slot.listener
        if listener.options.once and self._inbox is not None:
            slot.on_waiting()
            try:
                committed = await self._inbox.handled(listener.names, delivery.message_id)
            except BaseException as error:
                if slot.task is None and not isinstance(error, Exception):
                    raise
                with suppress(Exception):
                    log.warning("inbox check failed", listener=listener.name, error=describe(error))
                return release(claim, delivery, 0.0 if slot.is_stopping else UNDECIDED_DELAY)
            if committed:
                metrics.handled += 1
                return Settlement(claim=claim, delivery=delivery, outcome=Outcome.DONE)
        if settlement.outcome is Outcome.DEAD:
            metrics.dead += 1
        return settlement

    def _crashed(self, claim: Claim, delivery: ClaimedDelivery) -> Settlement:
        failure = Failure(error=f"its worker died {delivery.crashes} times while this delivery ran alone")
        log.error(
            "delivery dead-lettered",
            listener=claim.subscription,
            event_name=delivery.event,
            event_id=delivery.message_id,
            crashes=delivery.crashes,
        )
        return Settlement(claim=claim, delivery=delivery, outcome=Outcome.DEAD, failure=failure, charge=False)


async def _absorb_cancellation(task: asyncio.Task[None]) -> None:
    """Clear all cancellations of an attempt that has ended, so that they do not reach the next delivery."""
    while task.cancelling():
        task.uncancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)  # a pending cancellation is raised here


def _ends_caller(slot: Slot, error: BaseException) -> bool:
    """Whether an error ends the calling task, not only the attempt: in a test kit, or when a coroutine is closed."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    kind = type(error)  # `isinstance` would run the error's own `__class__`
    if slot.task is not None:
        return issubclass(kind, GeneratorExit) and task is not slot.task
    cancelled = issubclass(kind, asyncio.CancelledError) and task is not None and task.cancelling() > 0
    return cancelled or issubclass(kind, SystemExit | KeyboardInterrupt | GeneratorExit)


_CALLERS = {Executor._attempt.__code__, Caller.call.__code__}  # noqa: SLF001 - a class of this module


def running_listener(frame: FrameType) -> str | None:
    """Return the name of the listener whose handler `frame` calls; None for other frames."""
    if frame.f_code in _CALLERS:
        slot = frame.f_locals.get("slot")
        return slot.listener.name if isinstance(slot, Slot) else None
    return None
