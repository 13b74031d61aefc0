"""The heartbeat of a worker: a thread that renews the lease while the event loop makes progress."""

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

import structlog

from bus.metrics import BusMetrics
from bus.options import BusOptions
from infra.failures import describe
from infra.mq import Consumer

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WARN_AFTER = 1.0
"""Seconds for which the event loop may be blocked before that is logged, with the listener that blocks it."""


class Heartbeat:
    """Renews the lease of a consumer until the event loop is blocked for longer than `max_stall`."""

    def __init__(
        self,
        consumer: Consumer,
        options: BusOptions,
        metrics: BusMetrics,
        listener_of: Callable[[FrameType], str | None],
        on_loss: Callable[[], object],
    ) -> None:
        self._consumer = consumer
        self._options = options
        self._metrics = metrics
        self._listener_of = listener_of
        self._on_loss = on_loss
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._progressed = time.monotonic()
        self._renewed = 0.0
        self._is_renewing = True
        self._warned = False

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the thread cannot be started.
        """
        threading.Thread(target=self._run, name="bus heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread; the lease then expires, unless the consumer is closed before."""
        self._stopped.set()

    def _run(self) -> None:
        # The supervisor cannot run this, because it must renew the lease while the event loop is blocked. It continues
        # after every error: without it a healthy worker would lose its lease.
        while True:
            try:
                self._beat()
            except BaseException as error:
                self._metrics.heartbeat_failures += 1
                with contextlib.suppress(Exception):
                    log.exception("heartbeat failed", error=describe(error))
            else:
                return

    def _beat(self) -> None:
        step = min(self._options.renew_every, WARN_AFTER, self._options.max_stall / 4)
        while not self._stopped.wait(step):
            try:
                self._loop.call_soon_threadsafe(self._note_progress)
            except RuntimeError:
                return  # the loop is closed
            stalled = time.monotonic() - self._progressed
            if stalled > self._options.max_stall:
                self._abandon(stalled)
                return
            if stalled > WARN_AFTER + step:
                if not self._warned:
                    self._warned = True
                    self._metrics.loop_stalls += 1
                    log.warning("event loop blocked", seconds=round(stalled, 1), by=self._blocking_listener())
            else:
                self._warned = False
            if time.monotonic() - self._renewed >= self._options.renew_every:
                renewed = time.monotonic()
                kept = self._renew(log_failure=self._is_renewing)
                if kept is False:
                    self._report_loss()
                    return
                # A failed renewal is repeated at the next step; the lease has not expired yet.
                self._is_renewing = kept is not None
                self._renewed = renewed if self._is_renewing else self._renewed

    def _note_progress(self) -> None:
        self._progressed = time.monotonic()

    def _renew(self, *, log_failure: bool) -> bool | None:
        """Return whether the worker still has its lease, None if the renewal failed."""
        try:
            return self._consumer.renew()
        except Exception as error:  # noqa: BLE001 - the next renewal may succeed after any error
            if log_failure:
                log.warning("lease renewal failed", error=describe(error))
            return None

    def _abandon(self, stalled: float) -> None:
        self._metrics.loop_stalls += 1
        by = self._blocking_listener()  # first, before the event loop can continue
        try:
            self._consumer.abandon()
        except Exception as error:  # noqa: BLE001 - the lease then expires
            log.warning("lease abandonment failed", error=describe(error))
        self._report_loss()
        log.error("lease abandoned", seconds=round(stalled, 1), max_stall=self._options.max_stall, by=by)

    def _report_loss(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_loss)

    def _blocking_listener(self) -> str:
        """Return the name of the listener whose handler blocks the event loop, and the line that it executes."""
        try:
            return self._find_blocking_listener()
        except Exception as error:  # noqa: BLE001 - the thread continues while its frames are read
            return f"unknown ({type(error).__name__})"

    def _find_blocking_listener(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way to read another thread's frame
        if frame is None:
            return "unknown"
        where = "".join(traceback.format_stack(frame, limit=None)[-1:]).strip().replace("\n", " ")
        walker: FrameType | None = frame
        while walker is not None:
            if (name := self._listener_of(walker)) is not None:
                return f"{name}, {where}"
            walker = walker.f_back
        return where
