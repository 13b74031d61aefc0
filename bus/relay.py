"""The relay: carries what transactions left in the outbox to the queue."""

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bus.broadcast_relay import BroadcastRelay
from bus.metrics import BusMetrics
from bus.outbox import GROUP_BYTES, Entry, Kind, Outbox, Pending
from bus.outbox_sender import OutboxSender
from bus.registry_copy import RegistryCopy
from bus.relay_loop import RelayLoop
from bus.supervisor import Supervisor
from infra.clock import Clock
from infra.mq import MessageQueue

POLL_EVERY = 0.5
"""Seconds between two polls for rows that other processes left."""

LEFT_AFTER = 2.0
"""Seconds for which a relay has seen a row before the row counts as left by the process that committed it."""

NOTE_EVERY = 0.1
"""Seconds between two notes of how far the rows go, so that there are few however often rows are committed."""

PUSH_WITHIN = 1.0
"""Seconds after its commit within which a process sends a row from memory.

Less than `LEFT_AFTER`: no other process can have sent the row and deleted it by then.
"""

LEASE = 3.0
"""Seconds after which the right to send passes on if its holder does not renew it."""

RETRY_AFTER = 0.05
"""Seconds after which a relay with rows of its own asks again for the right that another process has."""

MAX_WAITING = 10_000
"""Messages that wait in memory to be pushed; beyond that their rows alone wait."""

MAX_WAITING_BYTES = 16 * 1024 * 1024
"""How large, in bytes, these messages are together at most; a larger one waits alone."""


class Relay:
    """Sends this process's unordered messages at once, and all other rows in turn, one process at a time.

    Three loops, so that none waits for another: one pushes what this process committed, one carries rows, one sends
    broadcasts. Carrying takes turns between cancellations, ordered messages, and unordered ones that their process
    left, one bounded group of each.

    All is sent with `dedupe`: what is sent twice, because a reply or a process was lost in between, is accepted once.
    A message is sent only while its row exists: carried from the row itself, or pushed before another process may
    take the row. That also makes a holder of the right harmless that was paused for longer than its lease: it can only
    repeat.
    """

    def __init__(
        self,
        mq: MessageQueue,
        outbox: Outbox,
        clock: Clock,
        metrics: BusMetrics,
        supervisor: Supervisor,
        registry: RegistryCopy,
        *,
        origin: str,
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self._supervisor = supervisor
        self._owner = uuid.uuid4().hex
        self._valid_until = float("-inf")
        self._sender = OutboxSender(mq, outbox, metrics)
        self._direct: deque[tuple[float, Entry]] = deque()
        self._direct_bytes = 0
        self._seen: deque[tuple[float, int]] = deque()
        self._last_left = 0
        self._broadcasts = BroadcastRelay(mq, registry, clock, metrics, origin=origin)
        self._task = RelayLoop("outbox relay", self._carry, clock, every=POLL_EVERY)
        self._push_task = RelayLoop("outbox push", self._push, clock, every=POLL_EVERY)

    @property
    def loops(self) -> tuple[RelayLoop, ...]:
        """Its background loops."""
        return self._task, self._push_task, self._broadcasts.loop

    def start(self) -> None:
        """Begin to carry; the queue knows this process's subscriptions by now."""
        for loop in self.loops:
            loop.start(self._supervisor)

    async def close(self) -> None:
        """Finish the groups that are just being sent, and stop; what is left is found by the next relay."""
        await asyncio.gather(*(loop.close() for loop in self.loops))

    def committed(self, entries: Sequence[Entry], *, cancelled: bool) -> None:
        """Take note of rows that a transaction of this process has just left in the outbox."""
        now = self._clock.monotonic()
        carried = cancelled
        for entry in entries:
            if entry.kind is not Kind.DIRECT:
                carried = True
                continue
            size = _size(entry)
            fits = len(self._direct) < MAX_WAITING and self._direct_bytes + size <= MAX_WAITING_BYTES
            if fits or not self._direct:
                self._direct.append((now, entry))
                self._direct_bytes += size
        if carried:
            self._task.wake()
        if self._direct:
            self._push_task.wake()

    def broadcast(self, frames: Sequence[tuple[str, bytes]]) -> None:
        """Send broadcasts, each with the name of its event, at most once: they are gone if the queue is."""
        self._broadcasts.add(frames)

    # --- pushing ----------------------------------------------------------------------------------------------------

    async def _push(self) -> None:
        while not self._push_task.stopping and (group := self._take_direct()):
            try:
                await self._sender.publish(group)
            except Exception:
                self._metrics.publish_failures += 1
                raise
            self._push_task.progressed()

    def _take_direct(self) -> list[Entry]:
        """Return the next messages to push, without those whose rows another process may have sent by now."""
        oldest = self._clock.monotonic() - PUSH_WITHIN
        group: list[Entry] = []
        size = 0
        while self._direct and len(group) < self._sender.group:
            committed_at, entry = self._direct[0]
            more = _size(entry)
            if group and size + more > GROUP_BYTES:
                break
            self._direct.popleft()
            self._direct_bytes -= more
            if committed_at > oldest:
                group.append(entry)
                size += more
        return group

    # --- carrying ---------------------------------------------------------------------------------------------------

    async def _carry(self) -> None:
        """Send all that is due in order, if no other process is just doing so."""
        pending = await self._pending()
        if pending is None:
            return
        if not await self._acquire():
            # Its holder may be about to release it, with our rows come too late for it: ask again soon.
            await self._clock.sleep(RETRY_AFTER)
            self._task.wake()
            return
        try:
            async with self._renewing():
                while pending is not None and self._holds and not self._task.stopping:
                    if not await self._take_turns(pending):
                        break
                    self._task.progressed()
                    pending = await self._pending()
        except Exception:
            self._metrics.publish_failures += 1
            raise
        finally:
            await self._outbox.release(self._owner)

    async def _pending(self) -> Pending | None:
        """Return what there is to carry, None if there is nothing."""
        pending = await self._outbox.pending()
        now = self._clock.monotonic()
        if pending.last_direct is not None and (not self._seen or now - self._seen[-1][0] >= NOTE_EVERY):
            self._seen.append((now, pending.last_direct))
        while self._seen and now - self._seen[0][0] >= LEFT_AFTER:
            self._last_left = max(self._last_left, self._seen.popleft()[1])
        return pending if pending.cancellations or pending.carried or self._is_left(pending) else None

    def _is_left(self, pending: Pending) -> bool:
        return pending.first_direct is not None and pending.first_direct <= self._last_left

    async def _take_turns(self, pending: Pending) -> bool:
        """Send one group of each kind; False if there was nothing to send."""
        limit, sent = self._sender.group, False
        if pending.cancellations and (cancellations := await self._outbox.cancellations(limit)):
            await self._sender.cancel(cancellations)
            sent = True
        if pending.carried and self._holds and (carried := await self._outbox.carried(limit)):
            await self._sender.publish(carried)
            sent = True
        if self._is_left(pending) and self._holds and (left := await self._outbox.left(limit, self._last_left)):
            await self._sender.publish(left)
            sent = True
        return sent

    # --- the right to send ------------------------------------------------------------------------------------------

    @property
    def _holds(self) -> bool:
        return self._clock.monotonic() < self._valid_until

    async def _acquire(self) -> bool:
        asked = self._clock.monotonic()
        if not await self._outbox.acquire(self._owner, LEASE):
            self._valid_until = float("-inf")
            return False
        self._valid_until = asked + LEASE
        return True

    @asynccontextmanager
    async def _renewing(self) -> AsyncIterator[None]:
        """Surround a block in which the right is renewed, however long it takes to send a group."""

        async def renew() -> None:
            while True:
                await self._clock.sleep(LEASE / 3)
                if not await self._acquire():
                    return

        renewal = asyncio.create_task(renew(), name="outbox relay lease")
        try:
            yield
        finally:
            renewal.cancel()
            await asyncio.wait((renewal,))
            if not renewal.cancelled():
                renewal.exception()  # without a renewal the right ends by itself, and the next turn says why


def _size(entry: Entry) -> int:
    return len(entry.message.body) if entry.message is not None else 0
