"""Release of claims whose caller was cancelled before it got them, so that it could never settle them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from infra.mq.drivers.sql.sqlite.presence import LockMembership
from infra.mq.errors import QueueError, QueueIndeterminate
from infra.mq.types import Claim, Outcome, Settlement

Settle = Callable[[LockMembership, Sequence[Settlement]], Awaitable[object]]


class CancelledClaims:
    """The claims of cancelled callers: released at once, or stored after a failure until the next `release`."""

    def __init__(self, settle: Settle) -> None:
        self._settle = settle
        self._unwanted: dict[LockMembership, list[Claim]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, member: LockMembership, result: list[Claim] | Exception) -> None:
        """Add the result of a claim of `member` whose caller was cancelled."""
        if isinstance(result, QueueIndeterminate):
            member.abandon()  # its claims are unknown here: abandon the lease so that they are recovered
        elif isinstance(result, list) and result:
            self._unwanted.setdefault(member, []).extend(result)
            task = asyncio.get_running_loop().create_task(self._try_to_release(member))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def release(self) -> None:
        """Release the stored claims of all workers of this process; after an error they stay stored."""
        for member in list(self._unwanted):
            await self._release(member)

    def forget(self, member: LockMembership) -> None:
        """Drop the stored claims of a worker that has left and released all its claims."""
        self._unwanted.pop(member, None)

    async def _release(self, member: LockMembership) -> None:
        claims = self._unwanted.pop(member, [])
        if claims:
            try:
                await self._settle(member, [_released(it) for it in claims])
            except BaseException:
                self._unwanted.setdefault(member, []).extend(claims)
                raise

    async def _try_to_release(self, member: LockMembership) -> None:
        try:
            await self._release(member)
        except QueueError:
            return  # the next call of `release` tries again


def _released(claim: Claim) -> Settlement:
    return Settlement(claim=claim, delivery=claim.deliveries[0], outcome=Outcome.RELEASE, close=claim.ordered)
