"""The runnables of every process: they watch the event loop and the bus."""

from beneath.runtime.lifecycle import exit_requests
from bus import Bus
from infra.telemetry import Telemetry


class LoopWatch:
    """A runnable that measures the delay of the event loop for the metrics."""

    name = "loop-watch"

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def run(self) -> None:
        await self._telemetry.watch_loop()


class BusWatch:
    """A runnable that fails when a background task of the bus fails for good, or a broadcast listener exits."""

    name = "bus-watch"

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def run(self) -> None:
        with exit_requests():
            await self._bus.watch()
