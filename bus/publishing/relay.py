"""The relay: carries what transactions left in the outbox to the queue."""

import asyncio
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from bus.metrics import BusMetrics
from bus.publishing.broadcast_relay import BroadcastRelay
from bus.publishing.outbox import GROUP_BYTES, Outbox
from bus.publishing.outbox_entries import Entry, EntryKind
from bus.publishing.outbox_sender import OutboxSender
from bus.publishing.relay_loop import RelayLoop
from bus.publishing.shared_right import LEASE, RETRY_AFTER, SharedRight
from bus.publishing.subscription_cache import SubscriptionCache
from bus.supervisor import Supervisor
from infra.clock import Clock
from infra.mq import MessageQueue

__all__ = ["LEASE", "Relay"]

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

MAX_WAITING = 10_000
"""Messages that wait in memory to be pushed; beyond that their rows alone wait."""

MAX_WAITING_BYTES = 16 * 1024 * 1024
"""How large, in bytes, these messages are together at most; a larger one waits alone."""


Read = Callable[[], Awaitable[list[Entry]]]
"""Returns the next rows of one kind."""

Send = Callable[[Sequence[Entry]], Awaitable[None]]


class Relay:
    """Sends this process's unordered messages at once, and all other rows in order, one process at a time.

    A loop for each kind, so that none waits for another: one pushes what this process committed, one sends broadcasts,
    and three, which share the right to send, carry rows in bounded groups: cancellations, ordered messages, and
    unordered ones that their process left. One more polls for rows and wakes those three.

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
        subscriptions: SubscriptionCache,
        *,
        origin: str,
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self._supervisor = supervisor
        self._right = SharedRight(outbox, uuid.uuid4().hex, clock)
        sent: set[int | str] = set()
        # Each with a size of its groups: what gets through of one kind says nothing of another.
        self._sender, self._canceller, self._carrier, self._sweeper = (
            OutboxSender(mq, outbox, metrics, sent) for _ in range(4)
        )
        self._direct: deque[tuple[float, Entry]] = deque()
        self._direct_bytes = 0
        self._seen: deque[tuple[float, int]] = deque()
        self._last_left = 0
        self._broadcasts = BroadcastRelay(mq, subscriptions, clock, metrics, origin=origin)
        self._task = RelayLoop("outbox relay", self._watch, clock, every=POLL_EVERY)
        self._cancel_task = RelayLoop("outbox cancellations", self._cancel, clock)
        self._carry_task = RelayLoop("outbox ordered", self._carry, clock)
        self._sweep_task = RelayLoop("outbox left", self._sweep, clock)
        self._push_task = RelayLoop("outbox push", self._push, clock, every=POLL_EVERY)

    @property
    def loops(self) -> tuple[RelayLoop, ...]:
        """Its background loops."""
        carrying = self._cancel_task, self._carry_task, self._sweep_task
        return self._task, *carrying, self._push_task, self._broadcasts.loop

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
            if entry.kind is not EntryKind.DIRECT:
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

    async def _watch(self) -> None:
        """Wake the loops for whose rows there is something to do."""
        pending = await self._outbox.pending()
        now = self._clock.monotonic()
        if pending.last_direct is not None and (not self._seen or now - self._seen[-1][0] >= NOTE_EVERY):
            self._seen.append((now, pending.last_direct))
        while self._seen and now - self._seen[0][0] >= LEFT_AFTER:
            self._last_left = max(self._last_left, self._seen.popleft()[1])
        if pending.cancellations:
            self._cancel_task.wake()
        if pending.carried:
            self._carry_task.wake()
        if pending.first_direct is not None and pending.first_direct <= self._last_left:
            self._sweep_task.wake()

    async def _cancel(self) -> None:
        sender = self._canceller
        await self._work_off(self._cancel_task, lambda: self._outbox.cancellations(sender.group), sender.cancel)

    async def _carry(self) -> None:
        sender = self._carrier
        await self._work_off(self._carry_task, lambda: self._outbox.carried(sender.group), sender.publish)

    async def _sweep(self) -> None:
        sender = self._sweeper

        def read() -> Awaitable[list[Entry]]:
            return self._outbox.left(sender.group, self._last_left)

        await self._work_off(self._sweep_task, read, sender.publish)

    async def _work_off(self, loop: RelayLoop, read: Read, send: Send) -> None:
        """Send group after group, if no other process is just doing so, until there is nothing more to send."""
        async with self._right.held() as held:
            if not held:
                # Its holder may be about to release it, with our rows come too late for it: ask again soon.
                await self._clock.sleep(RETRY_AFTER)
                loop.wake()
                return
            try:
                while self._right.valid and not loop.stopping:
                    loop.catch_up()
                    group = await read()
                    if not group or not self._right.valid:
                        break
                    await send(group)
                    loop.progressed()
            except Exception:
                self._metrics.publish_failures += 1
                raise


def _size(entry: Entry) -> int:
    return len(entry.message.body) if entry.message is not None else 0
