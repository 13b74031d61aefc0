"""The outcomes of attempts that raised.

`outcome_of` alone converts errors of user code to outcomes. The table "What your code may raise" in docs/guarantees.md
lists them.
"""

import asyncio
import contextvars
from contextlib import suppress
from random import Random

import structlog

from bus.errors import Discard, RetryLater, UndecodablePayload, UnknownEvent
from bus.handler_calls import exit_in
from bus.metrics import ListenerMetrics
from bus.retry import DEFAULT_RETRY
from bus.worker.inbox import AlreadyHandled
from bus.worker.logged_tracebacks import LoggedTracebacks
from bus.worker.slot import Slot
from bus.worker.threads import NoThread
from infra.failures import MAX_TRACEBACK, class_name, describe, render_traceback
from infra.mq import Claim, ClaimedDelivery, Failure, Outcome, Settlement
from infra.mq.limits import check_delay, storable_text

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_ERROR_BYTES = 4_096
"""The longest text of an error that a failure stores, in bytes."""

NO_THREAD_DELAY = 1.0
"""Seconds after which a delivery is retried for which no thread could be started."""

CANCELLED_DELAY = 1.0
"""Seconds after which a delivery is retried whose handler another delivery's handler cancelled."""


def release(claim: Claim, delivery: ClaimedDelivery, delay: float = 0.0) -> Settlement:
    """Return the settlement that releases a claim from `delivery` on, without an attempt."""
    return Settlement(claim=claim, delivery=delivery, outcome=Outcome.RELEASE, delay=delay, close=claim.ordered)


class HandlerTimeout(TimeoutError):
    """A handler took longer than its listener's timeout."""


class HandlerCancelled(Exception):
    """A handler ended by a cancellation that the worker did not request."""


class Parked(UnknownEvent):
    """This code does not know the event. Raised by the bus alone; an UnknownEvent of a handler is a failure."""


class Expired(Exception):
    """The event expired before the attempt began. Raised by the bus alone."""


class Attempt:
    """An attempt that raised, with its slot and delivery; not made for attempts that succeed, to save time."""

    __slots__ = ("claim", "context", "delivery", "logged", "metrics", "slot")

    def __init__(
        self,
        slot: Slot,
        claim: Claim,
        delivery: ClaimedDelivery,
        metrics: ListenerMetrics,
        context: contextvars.Context,
        logged: LoggedTracebacks,
    ) -> None:
        self.slot = slot
        self.claim = claim
        self.delivery = delivery
        self.metrics = metrics
        self.context = context
        self.logged = logged

    def settlement(
        self, outcome: Outcome, *, delay: float = 0.0, needs: str | None = None, failure: Failure | None = None
    ) -> Settlement:
        """Return the settlement of the delivery with an outcome."""
        return Settlement(
            claim=self.claim, delivery=self.delivery, outcome=outcome, delay=delay, needs=needs, failure=failure
        )

    def log_fields(self) -> dict[str, object]:
        """Return the log fields that name the delivery."""
        delivery = self.delivery
        return {"listener": self.slot.listener.name, "event_name": delivery.event, "event_id": delivery.message_id}

    def log(self, level: str, event: str, **fields: object) -> None:
        """Log in the delivery's context; without it if a value that the handler bound cannot be rendered."""
        try:
            self.context.run(getattr(log, level), event, **fields)
        except BaseException as error:  # noqa: BLE001 - the bound value's own code may raise anything
            with suppress(Exception):
                contextvars.Context().run(getattr(log, level), event, log_error=describe(error), **fields)


def timeout_of(slot: Slot) -> HandlerTimeout:
    """Return the error of an attempt that its deadline has cancelled."""
    return HandlerTimeout(f"took longer than its timeout of {slot.listener.options.timeout:g} s")


def outcome_of(attempt: Attempt, error: BaseException, random: Random) -> Settlement | None:
    """Return the settlement of an attempt that raised `error`, None if the claim stays unsettled. Never raises."""
    try:
        return _decide(attempt, error, random)
    except BaseException as failure:  # noqa: BLE001 - an error that cannot be inspected counts as a failure
        unreadable = RuntimeError(f"an error that cannot be inspected ({class_name(failure)})")
        return _failed(attempt, unreadable, random)


def _decide(attempt: Attempt, error: BaseException, random: Random) -> Settlement | None:
    """Return the settlement, by the first rule that applies.

    A committed delivery is done. The handler's own decision counts (`Discard`, `RetryLater`). An expired delivery ends.
    An unknown event is parked. A missing thread, a shutdown and a cancellation by another delivery's handler release
    the claim. An exit ends the process. Every other error counts as one failure.
    """
    slot, metrics = attempt.slot, attempt.metrics
    slot.exit = exit_in(error)
    if slot.committed or isinstance(error, AlreadyHandled):
        metrics.handled += 1
        return attempt.settlement(Outcome.DONE)
    match error:
        case Discard():
            metrics.discarded += 1
            metrics.handled += 1
            attempt.log("info", "delivery discarded", reason=describe(error))
            return attempt.settlement(Outcome.DONE)
        case RetryLater() if (delay := _valid_delay(error)) is not None:
            metrics.deferred += 1
            return attempt.settlement(Outcome.DEFER, delay=delay)
        case Expired():
            metrics.expired += 1
            attempt.logged.forget(slot.listener.name, attempt.delivery.message_id)
            attempt.log("warning", "delivery expired", failures=attempt.delivery.failures)
            return attempt.settlement(Outcome.DONE)
        case Parked():
            metrics.parked += 1
            attempt.log("warning", "delivery parked", reason=describe(error))
            return attempt.settlement(Outcome.PARK, needs=error.needs)
        case NoThread():
            attempt.log("error", "handler thread not started", error=describe(error), retry_in=NO_THREAD_DELAY)
            return release(attempt.claim, attempt.delivery, NO_THREAD_DELAY)
    if slot.is_stopping:
        return None if slot.in_thread else release(attempt.claim, attempt.delivery)
    if slot.exit is not None:
        # The claim stays unsettled, so that the end of the process counts as a crash of this delivery.
        attempt.log("error", "process ended by handler", exit=describe(slot.exit), **attempt.log_fields())
        return None
    if slot.cancelled_by_other and isinstance(error, asyncio.CancelledError) and not slot.timed_out:
        attempt.log("warning", "handler cancelled by another handler", retry_in=CANCELLED_DELAY, **attempt.log_fields())
        return release(attempt.claim, attempt.delivery, CANCELLED_DELAY)
    return _failed(attempt, _reason(slot, error), random)


def _failed(attempt: Attempt, error: BaseException, random: Random) -> Settlement:
    """Count one failure; retry the delivery, block its key, or make it a dead letter.

    The last attempt logs its traceback; an earlier one logs it unless the attempt before failed at the same place.
    """
    listener, metrics, failures = attempt.slot.listener, attempt.metrics, attempt.delivery.failures + 1
    # The traceback of a timeout itself shows only the bus; the handler's own error is its cause.
    traceback = "" if type(error) is HandlerTimeout and error.__cause__ is None else render_traceback(error)
    failure = Failure(
        error=storable_text(describe(error), MAX_ERROR_BYTES),
        traceback=storable_text(traceback, MAX_TRACEBACK, keep="end"),
    )
    metrics.failed += 1
    metrics.timed_out += type(error) is HandlerTimeout
    fields: dict[str, object] = {**attempt.log_fields(), "attempt": failures, "error": failure.error}
    shows_traceback = bool(traceback) and not isinstance(error, UndecodablePayload)
    delay = _retry_delay(attempt, error, failures, random)
    if delay is not None:
        if shows_traceback and attempt.logged.is_new(listener.name, attempt.delivery.message_id, failure.traceback):
            fields["exception"] = failure.traceback
        attempt.log("warning", "listener failed", retry_in=round(delay, 3), **fields)
        return attempt.settlement(Outcome.RETRY, delay=delay, failure=failure)
    attempt.logged.forget(listener.name, attempt.delivery.message_id)
    if shows_traceback:
        fields["exception"] = failure.traceback
    if attempt.claim.ordered and listener.options.on_exhausted == "block":
        key = attempt.claim.ordering_key
        attempt.log("error", "ordering key blocked", key=key, **fields)
        return attempt.settlement(Outcome.BLOCK, failure=failure)
    attempt.log("error", "delivery dead-lettered", **fields)
    return attempt.settlement(Outcome.DEAD, failure=failure)


def _retry_delay(attempt: Attempt, error: BaseException, failures: int, random: Random) -> float | None:
    """Return the delay of the listener's retry policy for `error`, or of the default policy if that fails."""
    listener = attempt.slot.listener
    try:
        policy = listener.options.retry.policy_for(error)
        delay = policy.delay(failures, random)
        if delay is None:
            return None
        delay = check_delay(delay, "what Retry.delay() returns")
    except BaseException as failed:  # noqa: BLE001 - a subclass may raise anything
        attempt.log("error", "retry policy failed", listener=listener.name, error=describe(failed))
        return DEFAULT_RETRY.delay(failures, random)
    try:
        return max(delay, policy.wait_after(error))
    except BaseException as failed:  # noqa: BLE001 - `after` may raise anything
        attempt.log("error", "retry policy failed", listener=listener.name, error=describe(failed))
        return delay


def _reason(slot: Slot, error: BaseException) -> BaseException:
    """Return the error that the failure stores: a timeout, a cancellation, or the handler's error."""
    if isinstance(error, HandlerTimeout):
        return error  # as middleware received it
    if slot.timed_out:
        timeout = timeout_of(slot)
        timeout.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
        return timeout
    if isinstance(error, asyncio.CancelledError):
        return HandlerCancelled("something that the handler awaited was cancelled")
    return error


def _valid_delay(later: RetryLater) -> float | None:
    try:
        return check_delay(later.delay)
    except Exception:  # noqa: BLE001 - a subclass may have any delay, or none
        return None
