"""Keeps a worker's lease from a thread of its own, but only while the event loop moves."""

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
"""How long, in seconds, the loop may stand still before the log says who holds it."""


class Heartbeat:
    """A lease kept by a thread that asks the loop for a sign of life before it gives one."""

    def __init__(
        self,
        consumer: Consumer,
        options: BusOptions,
        metrics: BusMetrics,
        describe: Callable[[FrameType], str | None],
        on_loss: Callable[[], object],
    ) -> None:
        self._consumer = consumer
        self._options = options
        self._metrics = metrics
        self._describe = describe
        self._on_loss = on_loss
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._moved = time.monotonic()
        self._renewed = 0.0
        self._heard = True
        self._warned = False

    def start(self) -> None:
        """Begin to beat.

        Raises:
            RuntimeError: no thread can be started.
        """
        threading.Thread(target=self._run, name="bus heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Stop beating; the lease then runs out, or is released by its consumer."""
        self._stopped.set()

    def _run(self) -> None:
        # The one background task that is not the supervisor's, for it must beat while the loop stands still. It goes on
        # after whatever goes wrong: without it a worker that is well would lose its lease.
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
                self._loop.call_soon_threadsafe(self._sign_of_life)
            except RuntimeError:
                return  # the loop is closed
            stalled = time.monotonic() - self._moved
            if stalled > self._options.max_stall:
                self._give_up(stalled)
                return
            if stalled > WARN_AFTER + step:
                if not self._warned:
                    self._warned = True
                    self._metrics.loop_stalls += 1
                    log.warning("event loop blocked", seconds=round(stalled, 1), by=self._culprit())
            else:
                self._warned = False
            if time.monotonic() - self._renewed >= self._options.renew_every:
                asked = time.monotonic()
                kept = self._renew(complain=self._heard)
                if kept is False:
                    self._report_loss()
                    return
                # What failed is tried again at the next step: the lease runs on.
                self._heard = kept is not None
                self._renewed = asked if self._heard else self._renewed

    def _sign_of_life(self) -> None:
        self._moved = time.monotonic()

    def _renew(self, *, complain: bool) -> bool | None:
        try:
            return self._consumer.renew()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next beat may succeed
            if complain:
                log.warning("lease renewal failed", error=describe(error))
            return None

    def _give_up(self, stalled: float) -> None:
        self._metrics.loop_stalls += 1
        by = self._culprit()  # first: a moment later the loop may have moved on
        try:
            self._consumer.abandon()
        except Exception as error:  # noqa: BLE001 - the lease then ends by itself
            log.warning("lease abandonment failed", error=describe(error))
        # Once the loop moves again, the first thing it does is to notice.
        self._report_loss()
        log.error("lease abandoned", seconds=round(stalled, 1), max_stall=self._options.max_stall, by=by)

    def _report_loss(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._on_loss)

    def _culprit(self) -> str:
        """Return the name of the listener whose handler holds the loop, and the line it stands at."""
        try:
            return self._find_culprit()
        except Exception as error:  # noqa: BLE001 - it runs on while it is looked at
            return f"unknown ({type(error).__name__})"

    def _find_culprit(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way to see another thread
        if frame is None:
            return "unknown"
        where = "".join(traceback.format_stack(frame, limit=None)[-1:]).strip().replace("\n", " ")
        walker: FrameType | None = frame
        while walker is not None:
            if (name := self._describe(walker)) is not None:
                return f"{name}, {where}"
            walker = walker.f_back
        return where
