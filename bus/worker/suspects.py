"""Suspects: deliveries whose workers died repeatedly. They run alone, so that a crash counts for the right delivery."""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import structlog

from bus.worker.lane import Lane
from bus.worker.outcomes import release
from infra.failures import describe
from infra.mq import Claim, Consumer, QueueError, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ISOLATION_TIMEOUT = 10.0
"""Seconds to wait for running handlers to end; then the suspects are released."""


class Suspects:
    """The suspects of one session; each runs alone in the worker."""

    def __init__(
        self,
        consumer: Consumer,
        lanes: Mapping[str, Lane],
        settle: Callable[[Settlement], None],
        *,
        wait_until_idle: Callable[[float], Awaitable[bool]],
        run_alone: Callable[[Lane, Claim], Awaitable[None]],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._settle = settle
        self._wait_until_idle = wait_until_idle
        self._run_alone = run_alone
        self._is_stopping = is_stopping
        self._waiting: deque[Claim] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, claim: Claim) -> None:
        """Add the claim of a suspect."""
        self._waiting.append(claim)

    def release_all(self, delay: float = 0.0) -> None:
        """Release all suspects that have not run."""
        while self._waiting:
            claim = self._waiting.popleft()
            self._settle(release(claim, claim.deliveries[0], delay))

    async def run(self) -> None:
        """Run the suspects one by one, or release them if the handlers that run now do not end."""
        if not await self._wait_until_idle(ISOLATION_TIMEOUT):
            self.release_all(ISOLATION_TIMEOUT * 3)
            return
        while self._waiting and not self._is_stopping():
            claim = self._waiting.popleft()
            try:
                alone = await self._consumer.isolate(claim)
            except QueueError as error:
                log.warning("suspect isolation failed", error=describe(error))
                self._settle(release(claim, claim.deliveries[0], 1.0))
                continue
            except BaseException:
                self._settle(release(claim, claim.deliveries[0], 1.0))
                raise
            if alone:
                await self._run_alone(self._lanes[claim.subscription], claim)
