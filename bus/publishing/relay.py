"""The relay: the background task that sends outbox rows and broadcasts to the queue."""

import asyncio
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from bus.metrics import BusMetrics
from bus.publishing.broadcast_relay import BroadcastRelay
from bus.publishing.lease_holder import LEASE, RETRY_AFTER, LeaseHolder
from bus.publishing.outbox import GROUP_BYTES, Outbox
from bus.publishing.outbox_entries import Entry, EntryKind
from bus.publishing.outbox_sender import OutboxSender
from bus.publishing.relay_loop import RelayLoop
from bus.publishing.subscription_cache import SubscriptionCache
from bus.supervisor import Supervisor
from infra.clock import Clock
from infra.mq import MessageQueue

__all__ = ["LEASE", "Relay"]

POLL_EVERY = 0.5
"""Seconds between two polls for rows of other processes."""

LEFTOVER_AFTER = 2.0
"""Seconds for which a relay must have seen an unordered row before it sends the row in place of its process."""

RECORD_EVERY = 0.1
"""Seconds between two records of the highest row id, so that there are few records."""

PUSH_WITHIN = 1.0
"""Seconds after its commit within which a process pushes a row from memory.

Less than `LEFTOVER_AFTER`, so that no other process can have sent and deleted the row by then.
"""

MAX_WAITING = 10_000
"""The largest number of messages that wait in memory to be pushed; the relay sends the rows of all others."""

MAX_WAITING_BYTES = 16 * 1024 * 1024
"""The size of these messages together, in bytes, at most; a larger message waits alone."""


Read = Callable[[], Awaitable[list[Entry]]]
"""Returns the next rows of one kind."""

Send = Callable[[Sequence[Entry]], Awaitable[None]]
"""Sends rows to the queue."""


class Relay:
    """Pushes this process's unordered messages at once, and sends all other rows in order, if it has the relay lease.

    Each kind of row has its own loop, so that none blocks another. One loop pushes what this process committed, and one
    sends broadcasts. Three loops share the relay lease and send rows in bounded groups: cancellations, ordered
    messages, and unordered messages that their process has not pushed. One more loop polls for rows and wakes up these
    three.

    All messages are sent with `dedupe`: one that is sent twice, because a reply or a process was lost, is accepted
    once. A message is sent only while its row exists: read from the row itself, or pushed before another process may
    send the row. So a process that was paused for longer than its relay lease can only send duplicates.
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
        self._lease = LeaseHolder(outbox.lease, uuid.uuid4().hex, clock)
        sent: set[int | str] = set()
        # Each sender has its own group size, because the kinds of rows fail independently.
        self._push_sender, self._cancel_sender, self._ordered_sender, self._leftover_sender = (
            OutboxSender(mq, outbox, metrics, sent) for _ in range(4)
        )
        self._direct: deque[tuple[float, Entry]] = deque()
        self._direct_bytes = 0
        self._seen: deque[tuple[float, int]] = deque()
        self._last_leftover = 0
        self._broadcasts = BroadcastRelay(mq, subscriptions, clock, metrics, origin=origin)
        self._poll_loop = RelayLoop("outbox relay", self._poll, clock, every=POLL_EVERY)
        self._cancel_loop = RelayLoop("outbox cancellations", self._send_cancellations, clock)
        self._ordered_loop = RelayLoop("outbox ordered", self._send_ordered, clock)
        self._leftover_loop = RelayLoop("outbox left", self._send_leftover, clock)
        self._push_loop = RelayLoop("outbox push", self._push, clock, every=POLL_EVERY)

    @property
    def loops(self) -> tuple[RelayLoop, ...]:
        """All background loops of the relay."""
        leased = self._cancel_loop, self._ordered_loop, self._leftover_loop
        return self._poll_loop, *leased, self._push_loop, self._broadcasts.loop

    def start(self) -> None:
        """Start sending; the queue must have this process's subscriptions."""
        for loop in self.loops:
            loop.start(self._supervisor)

    async def close(self) -> None:
        """Finish the groups that are being sent, then stop; the next relay sends the remaining rows."""
        await asyncio.gather(*(loop.close() for loop in self.loops))

    def committed(self, entries: Sequence[Entry], *, cancelled: bool) -> None:
        """Push or announce the rows that a transaction of this process has committed."""
        now = self._clock.monotonic()
        needs_lease = cancelled
        for entry in entries:
            if entry.kind is not EntryKind.DIRECT:
                needs_lease = True
                continue
            size = _size(entry)
            fits = len(self._direct) < MAX_WAITING and self._direct_bytes + size <= MAX_WAITING_BYTES
            if fits or not self._direct:
                self._direct.append((now, entry))
                self._direct_bytes += size
        if needs_lease:
            self._poll_loop.wake()
        if self._direct:
            self._push_loop.wake()

    def broadcast(self, frames: Sequence[tuple[str, bytes]]) -> None:
        """Send broadcasts, each with the name of its event, at most once; an unavailable queue loses them."""
        self._broadcasts.add(frames)

    # --- pushing ----------------------------------------------------------------------------------------------------

    async def _push(self) -> None:
        while not self._push_loop.stopping and (group := self._take_direct()):
            try:
                await self._push_sender.publish(group)
            except Exception:
                self._metrics.publish_failures += 1
                raise
            self._push_loop.progressed()

    def _take_direct(self) -> list[Entry]:
        """Return the next messages to push, without those whose rows another process may have sent."""
        oldest = self._clock.monotonic() - PUSH_WITHIN
        group: list[Entry] = []
        size = 0
        while self._direct and len(group) < self._push_sender.group:
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

    # --- sending rows under the lease -------------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Wake up the loops that have rows to send."""
        pending = await self._outbox.pending()
        now = self._clock.monotonic()
        if pending.last_direct is not None and (not self._seen or now - self._seen[-1][0] >= RECORD_EVERY):
            self._seen.append((now, pending.last_direct))
        while self._seen and now - self._seen[0][0] >= LEFTOVER_AFTER:
            self._last_leftover = max(self._last_leftover, self._seen.popleft()[1])
        if pending.cancellations:
            self._cancel_loop.wake()
        if pending.ordered:
            self._ordered_loop.wake()
        if pending.first_direct is not None and pending.first_direct <= self._last_leftover:
            self._leftover_loop.wake()

    async def _send_cancellations(self) -> None:
        sender = self._cancel_sender
        await self._send_all(self._cancel_loop, lambda: self._outbox.cancellations(sender.group), sender.cancel)

    async def _send_ordered(self) -> None:
        sender = self._ordered_sender
        await self._send_all(self._ordered_loop, lambda: self._outbox.ordered(sender.group), sender.publish)

    async def _send_leftover(self) -> None:
        sender = self._leftover_sender

        def read() -> Awaitable[list[Entry]]:
            return self._outbox.leftover(sender.group, self._last_leftover)

        await self._send_all(self._leftover_loop, read, sender.publish)

    async def _send_all(self, loop: RelayLoop, read: Read, send: Send) -> None:
        """Send group after group until no rows are left, unless another process has the relay lease."""
        async with self._lease.held() as held:
            if not held:
                # The holder may release the lease without having seen the newest rows: try again soon.
                await self._clock.sleep(RETRY_AFTER)
                loop.wake()
                return
            try:
                while self._lease.valid and not loop.stopping:
                    loop.catch_up()
                    group = await read()
                    if not group or not self._lease.valid:
                        break
                    await send(group)
                    loop.progressed()
            except Exception:
                self._metrics.publish_failures += 1
                raise


def _size(entry: Entry) -> int:
    return len(entry.message.body) if entry.message is not None else 0
