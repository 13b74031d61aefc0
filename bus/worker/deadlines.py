"""The deadlines of running handlers, checked by one periodic task instead of a timer for each message."""

from collections.abc import Callable, Sequence

import structlog

from bus.worker.slot import FOREVER, Slot
from infra.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Deadlines:
    """Cancels handlers at their deadlines, and logs those that keep running after that."""

    def __init__(self, clock: Clock, timeouts: Sequence[float], running: Callable[[], list[Slot]]) -> None:
        self._clock = clock
        self._step = min(max(min(timeouts, default=FOREVER) / 4, 0.01), 1.0)
        self._needed = bool(timeouts)
        self._running = running

    async def sweep(self) -> None:
        """Check all deadlines until cancelled; return at once if no listener has a timeout."""
        while self._needed:
            await self._clock.sleep(self._step)
            now = self._clock.monotonic()
            for slot in self._running():
                if slot.deadline <= now:
                    slot.interrupt()
                elif slot.timed_out and slot.deadline is FOREVER:
                    self._report(slot, now)

    def _report(self, slot: Slot, now: float) -> None:
        timeout = slot.listener.options.timeout or 0.0
        if not slot.timeout_logged and now - slot.started > timeout + max(timeout, 1.0):
            slot.timeout_logged = True
            log.error(
                "handler timeout ignored",
                listener=slot.listener.name,
                seconds=round(now - slot.started, 1),
            )
