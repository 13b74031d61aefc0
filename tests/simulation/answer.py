"""A simulated request: its arrival at the server, its execution, and the delivery or loss of its reply."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

from tests.simulation.loop import SimulatedLoop

_T = TypeVar("_T")


class Answer(Generic[_T]):
    """The reply to one request, which may arrive late, be lost, or be abandoned by its caller."""

    def __init__(
        self,
        call: Callable[[], Awaitable[_T]],
        after: float,
        undelivered: Callable[[_T], Awaitable[object]] | None,
        loop: SimulatedLoop,
    ) -> None:
        self.done = asyncio.Event()
        self._call = call
        self._after = after
        self._release_undelivered = undelivered
        self._loop = loop
        self._abandoned = False
        self._result: _T | None = None
        self._failure: Exception | None = None

    async def execute(self) -> None:
        """Wait for the arrival of the request, execute it, and store its result; this is the server's part."""
        while self._after > 0:
            after, self._after = self._after, 0.0
            await asyncio.sleep(after)
        try:
            self._result = await self._call()
        except Exception as error:  # noqa: BLE001 - raised to the caller by `take`
            self._failure = error
        self.done.set()
        if self._abandoned:
            await self._handle_undelivered()

    def delay(self, seconds: float) -> None:
        """Postpone the arrival of a request that has not arrived yet."""
        self._after += seconds

    def abandon(self) -> None:
        """Mark the reply as not awaited any more; the server then handles its result by `undelivered`."""
        if not self._abandoned:
            self._abandoned = True
            if self.done.is_set():
                self._loop.spawn(self._loop.environment, self._handle_undelivered())

    def take(self) -> _T:
        """Return the result, or raise the error of the call."""
        if self._failure is not None:
            raise self._failure
        return cast("_T", self._result)

    async def _handle_undelivered(self) -> None:
        if self._release_undelivered is not None and self._failure is None:
            await self._release_undelivered(cast("_T", self._result))
