"""The contract between the bus and a message queue driver.

Every sentence in these docstrings is a promise; `tests/contract/` holds a test for each and runs over every driver.
These rules hold throughout:

- A state change is atomic: it happens as a whole or not at all, even if the process dies in the middle of it.
- Work is bounded: an operation on many deliveries is carried out in steps of a bounded number of deliveries and bytes.
  Each step is atomic by itself, and the queue serves other callers between two steps. After an error the completed
  steps stand; repeating the call continues with the rest.
- The caller keeps names, ids, ordering keys, times and delays within `infra.mq.limits`, and texts storable.
- A name in `Subscription.aliases` stands for that subscription everywhere, also in `declare` and `fetch`, so that old
  and new code can run side by side during a deploy. A claim carries the name that the consumer asked for.

From `open` to `close` a queue belongs to the running event loop. Every call of `MessageQueue` from another event loop,
from a thread, or from a process forked after `open` raises `infra.ownership.WrongEventLoop` and does nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from infra.mq.types import (
    BacklogPolicy,
    Claim,
    ClaimLimits,
    DeadLetter,
    Features,
    Message,
    Registry,
    Settlement,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)

REGISTRY_TTL = 1.0
"""Time, in seconds, for which a publisher may use its subscription cache to skip events without subscription."""


class Consumer(Protocol):
    """One worker's connection to the queue: it owns a claim until it settles it, closes, or dies.

    Liveness belongs to the worker, not to the message: a claim is never taken from a live worker, however long its
    handler runs. A worker is dead when its process has ended, or after `abandon`; with a driver that cannot detect
    the end of a process, also when no `renew` has succeeded for the lease time. The worker learns that from
    `valid_until`; its claims are taken over a little later.
    """

    @property
    def info(self) -> WorkerInfo:
        """The identity of this consumer's worker."""
        ...

    async def fetch(self, wants: Mapping[str, int], *, wait: float) -> list[Claim]:
        """Claim due deliveries, at most `wants[name]` claims per subscription, in the order in which they became due.

        An unordered claim holds one delivery. An ordered claim holds the first deliveries of one mailbox, at most
        `ClaimLimits.mailbox_batch`, and no consumer can claim that mailbox until this claim is released or settled. If
        fewer mailboxes are due than wanted, a driver may return claims of up to `ClaimLimits.mailbox_run` deliveries;
        together they still hold at most `wants[name]` times `mailbox_batch` deliveries of the subscription. A
        delivery whose `takeovers` is `ClaimLimits.suspect_after` or more comes in a claim of its own. A mailbox whose
        head is due later cannot be claimed before that time. Paused subscriptions, parked deliveries, blocked
        mailboxes, unknown names and wants of 0 yield no claim. The bodies of all claims but the first add up to at most
        `ClaimLimits.fetch_bytes`; the next call returns the rest.

        Without a due delivery the call waits up to `wait` seconds (0: not at all) and returns as soon as a delivery,
        published by any process, is due, or when `wake()` is called. After `wait` it returns an empty list.
        Cancelling it is safe: deliveries that it has claimed, or that its request claims later on the server, become
        due again while this consumer lives, at the latest when it closes or is recovered.

        Raises:
            QueueUnavailable: no delivery could be claimed now.
            QueueClosed: this consumer was closed, or has lost its lease.
        """
        ...

    def wake(self) -> None:
        """Make the waiting `fetch`, or else the next one, return without waiting; to be called in the loop's thread."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """End claims, and return the settlements that changed nothing because they were fenced.

        The settlements of one claim are carried out together, atomically; those of many claims in bounded steps.

        A settlement is fenced when its claim, which `Claim.fence` names, is not the current one of its delivery or
        mailbox, or belongs to another consumer: a repeated settlement never ends a later claim. DONE of an unordered
        delivery is never fenced: the handler has succeeded, so the delivery is deleted, whichever worker owns it; if
        it has been deleted already, DONE changes nothing. `Outcome` describes what each outcome does. A closed mailbox
        with deliveries left is due at once for any worker, behind the mailboxes that are due already, unless its head
        has a later due time: then it is due at that time.

        Raises:
            QueueUnavailable: some claims may have been settled; repeating the call later is safe.
            QueueRejected: some claims may have been settled, and one of the settlements can never be carried out.
        """
        ...

    async def isolate(self, claim: Claim) -> bool:
        """Record durably that the first unsettled delivery of `claim` is about to run alone; False when fenced.

        If the worker dies while the mark stands, its death counts as a crash of that delivery. Any settlement removes
        the mark.
        """
        ...

    async def recover(self) -> int:
        """Take over the claims of dead workers: make their deliveries due, and return the number of deliveries.

        Each delivery that a dead worker held gets `takeovers` + 1, or `crashes` + 1 if it was isolated; `failures`
        is unchanged. From then on the dead worker's settlements are fenced. The claims of a live worker are never
        taken over.
        """
        ...

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        """Make parked deliveries due whose `Settlement.needs` is in `known[subscription]`; return their number.

        Their attempts are unchanged and their mailboxes go on in order. For a delivery parked without `needs` the
        name of its event decides.
        """
        ...

    def renew(self) -> bool:
        """Renew this worker's lease; False when the lease is lost. Called from another thread, which it may block."""
        ...

    def abandon(self) -> None:
        """Give up the lease: the worker counts as dead from now on. Called from another thread if the loop hangs."""
        ...

    @property
    def valid_until(self) -> float:
        """Monotonic time until which no other worker may take over this worker's claims.

        It is infinite on drivers that detect the end of a process directly. After that time the claims may belong to
        another worker. A successful `renew` proves that they do not, and extends the time, counted from before that
        call, so that work that must end by then has a margin.
        """
        ...

    @property
    def lost(self) -> bool:
        """Whether the lease was lost or abandoned. A lost consumer can only be closed and replaced by a new one."""
        ...

    async def close(self) -> None:
        """Release every claim still owned, unchanged and due at once, and unregister. A second call does nothing.

        Claims passed to `keep` stay owned until the queue is closed or this process ends. The claims of a lost consumer
        are left to `recover`.
        """
        ...

    def keep(self, claim: Claim) -> None:
        """Exempt `claim` from `close()`: its handler does not stop.

        It is taken over once the queue is closed or the process has ended.
        """
        ...


class BroadcastReceiver(Protocol):
    """This process's reception of broadcasts: each at most once, none from before it was opened."""

    async def receive(self, wait: float) -> tuple[list[bytes], bool]:
        """Return the frames that other processes broadcast since the last call, in order, and whether some may be lost.

        Waits up to `wait` seconds for the first frame. The flag is True once after any time in which reception was
        impossible or so late that broadcasts may have been dropped. Frames sent with this receiver's `origin` are
        left out.

        Raises:
            QueueUnavailable: reception is impossible now; the next successful call reports a gap.
        """
        ...

    def wake(self) -> None:
        """Make the waiting `receive` return."""
        ...

    async def close(self) -> None:
        """Stop receiving."""
        ...


class MessageQueue(Protocol):
    """Durable subscriptions, and one independent delivery of every message for each."""

    @property
    def features(self) -> Features:
        """The abilities of this driver beyond the contract."""
        ...

    async def open(self) -> None:
        """Connect.

        Raises:
            QueueUnavailable: with one line that says why; a later call may succeed.
            QueueRejected: with one line that says what to change; repeating the call does not help.
        """
        ...

    async def close(self) -> None:
        """Release all resources. A second call does nothing.

        Consumers and receivers still open are abandoned, and so are closed consumers that keep a claim.

        From then on every call that needs the queue raises `QueueClosed`, also a call that is waiting.
        """
        ...

    def time(self) -> float:
        """Return the time of the queue's clock, in seconds since the epoch; every due time refers to it.

        Raises:
            QueueUnavailable: this process has never reached the queue, so that its time is unknown here.
        """
        ...

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        """Add subscriptions, events of subscriptions, and broadcast events. Leaving one out never removes it.

        Every message accepted after the return reaches every declared subscription, whichever process publishes it,
        even a process that uses an answer of `registry()` for up to `REGISTRY_TTL` seconds. Declaring the same again
        is cheap. A subscription that exists under an alias is renamed, with its backlog and its dead letters.

        Raises:
            SubscriptionConflict: nothing was added, because a subscription exists as ordered and is declared
                unordered, or the reverse, or because a name and its alias exist as two subscriptions.
        """
        ...

    async def registry(self) -> Registry:
        """Return the declared events."""
        ...

    async def publish(self, messages: Sequence[Message]) -> None:
        """Accept all the messages, in order, or none: one delivery each for every subscription of its event.

        When it returns, the deliveries exist, as durable as the driver makes them. A transactional driver joins the
        ambient transaction: the deliveries exist if and only if it commits, and no consumer sees them before.
        Concurrent calls share round trips. A message with `due_at` reaches the subscriptions that exist when it is
        published, no earlier than that time, and joins its mailbox when it is due. A message without an ordering key
        joins the mailbox of the empty key. A message with `dedupe` is dropped if a message with the same event and id
        was accepted with `dedupe` within the dedupe window and has not been cancelled. An id counts as accepted only
        if its transaction commits. `Message.accepted_since` lets a queue that is not transactional also drop a message
        that is sent again after the window.

        Raises:
            QueueRejected: nothing was stored, and repeating the call does not help.
            QueueUnavailable: nothing was stored; repeating the call may help.
            QueueIndeterminate: the outcome is unknown; if the messages have `dedupe`, publishing them again decides it.
        """
        ...

    async def cancel(self, message_id: str) -> bool:
        """Cancel a message with a `due_at`; False when it is due already, unknown or cancelled.

        It is cancelled for all its subscriptions or for none. With True the queue also forgets the id, so that it can
        be published again at once. A transactional driver joins the ambient transaction.
        """
        ...

    async def scheduled(self, message_id: str) -> bool:
        """Return whether `cancel(message_id)` would succeed now; changes nothing."""
        ...

    async def broadcast(self, frames: Sequence[bytes], *, origin: str) -> None:
        """Send frames to every open receiver but the one with this `origin`, at most once, in order.

        A transactional driver joins the ambient transaction.
        """
        ...

    async def receiver(self, *, origin: str) -> BroadcastReceiver:
        """Open this process's reception of broadcasts."""
        ...

    async def consumer(self, info: WorkerInfo, limits: ClaimLimits) -> Consumer:
        """Register a live worker, whose claims keep within `limits`."""
        ...

    async def stats(self) -> list[SubscriptionStats]:
        """Return the counts of every subscription, sorted by name."""
        ...

    async def warnings(self) -> list[str]:
        """Return the problems of the queue that `stats` does not show: one line each, with what to do about it."""
        ...

    async def dead_letters(
        self,
        *,
        subscription: str | None = None,
        event: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        """Return at most `limit` dead letters after the id `after`, in the order of their deaths."""
        ...

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        """Return one dead letter.

        Raises:
            DeadLetterNotFound: no dead letter has that id.
        """
        ...

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        """Turn dead letters back into deliveries of their own subscription only; return the number of deliveries.

        They start without failures, deferrals, takeovers or crashes. A delivery of an ordered subscription joins the
        end of its mailbox. Unknown ids are skipped, and dead letters of a retired subscription too.
        """
        ...

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        """Delete dead letters permanently; return the number deleted. Unknown ids are skipped."""
        ...

    async def pause(self, name: str) -> None:
        """Stop all processes from claiming deliveries of a subscription until `resume`; existing claims go on.

        The pause is as durable as the driver.

        Raises:
            SubscriptionNotFound: no subscription has that name.
        """
        ...

    async def resume(self, name: str) -> None:
        """Undo `pause`.

        Raises:
            SubscriptionNotFound: no subscription has that name.
        """
        ...

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        """Unblock a mailbox: its head is retried with no failures or, with `skip`, becomes a dead letter.

        Raises:
            SubscriptionNotFound: no subscription has that name.
            MailboxNotBlocked: that key is not blocked.
        """
        ...

    async def retire(self, name: str, *, event: str | None = None, backlog: BacklogPolicy = "refuse") -> int:
        """Remove a subscription, or one event of it, and its pending deliveries; return the number of deliveries.

        `backlog` decides about pending deliveries, scheduled and claimed ones included: with "refuse" their existence
        makes the call fail, "discard" deletes them, "dead" turns them into dead letters. The settlement of a removed
        claim is fenced. Existing dead letters stay. From the first step on no delivery can be claimed and none is
        added; repeating the call completes one that was interrupted.

        Raises:
            SubscriptionNotFound: no subscription has that name, or it does not have that event.
            ListenerInUse: a live worker has this listener (if the whole subscription is to be removed), or pending
                deliveries exist and `backlog` is "refuse".
        """
        ...
