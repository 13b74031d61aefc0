"""One request on its way, and what becomes of its answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

from tests.simulation.loop import SimulatedLoop

_T = TypeVar("_T")


class Answer(Generic[_T]):
    """One request in the hands of the network and the server."""

    def __init__(
        self,
        call: Callable[[], Awaitable[_T]],
        after: float,
        unheard: Callable[[_T], Awaitable[object]] | None,
        loop: SimulatedLoop,
    ) -> None:
        self.done = asyncio.Event()
        self._call = call
        self._after = after
        self._unheard = unheard
        self._loop = loop
        self._abandoned = False
        self._result: _T | None = None
        self._failure: Exception | None = None

    async def execute(self) -> None:
        """Be the server's side of it."""
        while self._after > 0:
            after, self._after = self._after, 0.0
            await asyncio.sleep(after)
        try:
            self._result = await self._call()
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
            self._failure = error
        self.done.set()
        if self._abandoned:
            await self._tell_nobody()

    def delay(self, seconds: float) -> None:
        """Let the request arrive later, if it has not yet."""
        self._after += seconds

    def abandon(self) -> None:
        """Say that nobody takes the answer."""
        if not self._abandoned:
            self._abandoned = True
            if self.done.is_set():
                self._loop.spawn(self._loop.world, self._tell_nobody())

    def take(self) -> _T:
        """Return the answer, or raise what it was."""
        if self._failure is not None:
            raise self._failure
        return cast("_T", self._result)

    async def _tell_nobody(self) -> None:
        if self._unheard is not None and self._failure is None:
            await self._unheard(cast("_T", self._result))
