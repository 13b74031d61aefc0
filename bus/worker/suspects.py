"""Suspects: deliveries that several workers died with. They run alone, so that only the guilty one is charged."""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import structlog

from bus.worker.lane import Lane
from bus.worker.outcomes import release
from infra.failures import describe
from infra.mq import Claim, Consumer, QueueError, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ISOLATION_PATIENCE = 10.0
"""How long, in seconds, to wait for running handlers to end before a suspect is put off."""

SUSPECT_AFTER = 2
"""Takeovers from which on a delivery runs alone."""


class Suspects:
    """The suspects of one session, which run one at a time and with nothing beside them."""

    def __init__(
        self,
        consumer: Consumer,
        lanes: Mapping[str, Lane],
        settle: Callable[[Settlement], None],
        *,
        wait_until_quiet: Callable[[float], Awaitable[bool]],
        run_alone: Callable[[Lane, Claim], Awaitable[None]],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._settle = settle
        self._wait_until_quiet = wait_until_quiet
        self._run_alone = run_alone
        self._is_stopping = is_stopping
        self._waiting: deque[Claim] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, claim: Claim) -> None:
        """Take a suspect on."""
        self._waiting.append(claim)

    def release_all(self, delay: float = 0.0) -> None:
        """Release all that have not run."""
        while self._waiting:
            claim = self._waiting.popleft()
            self._settle(release(claim, claim.deliveries[0], delay))

    async def run(self) -> None:
        """Run them, or put them off if what runs beside them does not end."""
        if not await self._wait_until_quiet(ISOLATION_PATIENCE):
            self.release_all(ISOLATION_PATIENCE * 3)
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
