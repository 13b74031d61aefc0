"""The contract between the bus and a message queue driver.

Every sentence in these docstrings is a promise; `tests/contract/` holds a test for each and runs over every driver.
These rules hold throughout:

- A state change is atomic: it has happened whole or not at all, also when the process dies in the middle of it.
- Work is bounded: what may concern many deliveries is done in steps of a bounded number of deliveries and bytes. Each
  step is atomic by itself, and other callers are served between two steps. After an error the steps that were carried
  out stand; the same call goes on with the rest.
- Names, ids, ordering keys, times and delays are within `infra.mq.limits`, and texts are storable: callers see to it.
- A name in `Subscription.aliases` stands for that subscription everywhere, also in `declare` and `fetch`, so that old
  and new code can run side by side during a deploy. A claim answers under the name that was asked for.

From `open` to `close` a queue belongs to the running event loop. Every call of `MessageQueue` from another event loop,
from a thread, or from a process forked meanwhile raises `infra.ownership.WrongEventLoop` and does nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

from infra.mq.types import (
    Claim,
    DeadLetter,
    Features,
    Message,
    Registry,
    Settlement,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)

MAILBOX_BATCH = 10
"""How many deliveries of one mailbox a claim holds at most."""

FETCH_BYTES = 8 * 1024 * 1024
"""How many bytes of message bodies one `fetch` returns at most, beyond its first claim."""

REGISTRY_TTL = 1.0
"""How long, in seconds, a publisher may trust its copy of the registry to skip events that nobody subscribed to."""


class Consumer(Protocol):
    """One worker's hold on the queue: it owns what it fetched until it settles it, closes, or is no longer alive.

    Liveness belongs to the worker, not to the message: a claim is never taken from a live worker, however long it
    takes. A worker is dead when its process is, or after `abandon`; with a driver that cannot see processes end, also
    when no `renew` succeeded for the lease time: it knows by `valid_until`, others take over a little later.
    """

    @property
    def info(self) -> WorkerInfo:
        """Who this consumer is."""
        ...

    async def fetch(self, wants: Mapping[str, int], *, wait: float) -> list[Claim]:
        """Claim what is due, at most `wants[name]` claims per subscription, what became due first coming first.

        An unordered claim holds one delivery; an ordered one the first deliveries of one mailbox, at most
        `MAILBOX_BATCH`, and nobody else can claim that mailbox until it is given back. A delivery whose `takeovers` is
        2 or more comes in a claim of its own. A mailbox whose head waits for a later time is not handed out before
        the head is due. Paused subscriptions, parked deliveries, blocked mailboxes, unknown names and wants of 0 give
        nothing. Bodies of all claims but the first add up to at most `FETCH_BYTES`; what is left comes next time.

        With nothing to claim it waits up to `wait` seconds (0: not at all) and returns as soon as something is due,
        published by any process, or after `wake()`. It returns an empty list at the latest after `wait`.
        `wake()` ends it early. Cancelling it is safe: deliveries that it had claimed, or that a request of it claims
        later on the server, are due again while this consumer lives, at the latest when it closes or is recovered.

        Raises:
            QueueUnavailable: nothing could be claimed now.
            QueueClosed: this consumer was closed, or has lost its lease.
        """
        ...

    def wake(self) -> None:
        """Make a waiting `fetch`, or else the next one, return without waiting; in the loop's thread only."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """End claims, and return the settlements that changed nothing because they were fenced.

        The settlements of one claim are carried out together, atomically; those of many claims in bounded steps.

        A settlement is fenced when its claim, which `Claim.fence` names, is not the present one of its delivery or
        mailbox, or is not this consumer's: a repeated settlement never ends a later claim. DONE of an unordered
        delivery is never fenced: the handler did succeed, so the delivery is deleted whoever owns it; if it is gone
        already, nothing happens. What each outcome does is said in `Outcome`. A closed mailbox with deliveries left is
        due at once for any worker, behind the mailboxes that are waiting; one whose head has a later due
        time becomes due then; others wait for nothing.

        Raises:
            QueueUnavailable: some claims may have been settled; settling the same again later is safe.
            QueueRejected: the same, and one of these settlements can never be carried out.
        """
        ...

    async def isolate(self, claim: Claim) -> bool:
        """Record durably that `claim`'s first unsettled delivery is about to run alone; False when fenced.

        If its worker dies now, that death counts as the delivery's crash. Any settlement takes the mark away.
        """
        ...

    async def recover(self) -> int:
        """Take the claims of dead workers away from them and make them due; return how many deliveries that were.

        Each delivery that a dead worker held gets `takeovers` + 1, or `crashes` + 1 if it was isolated; `failures`
        stays. From then on the dead worker's settlements are fenced. Its own claims are never taken while it is
        alive.
        """
        ...

    async def unpark(self, known: Mapping[str, Collection[str]]) -> int:
        """Make parked deliveries due whose `Settlement.needs` is in `known[subscription]`; return how many.

        Their attempts are unchanged and their mailboxes go on in order. A delivery parked without `needs` goes by the
        name of its event.
        """
        ...

    def renew(self) -> bool:
        """Say that this worker is alive; False when the lease is lost. Called from another thread; may block it."""
        ...

    def abandon(self) -> None:
        """Count as dead from now on, as after a kill. Called from another thread when the event loop is stuck."""
        ...

    @property
    def valid_until(self) -> float:
        """Until when, by the clock's `monotonic`, nobody takes over; infinity where others see whether it lives.

        From then on somebody may have, and own what this consumer fetched; a `renew` that succeeds says that nobody
        has, and moves it on. It is counted from before the last such call, so that what must end by then has a margin.
        """
        ...

    @property
    def lost(self) -> bool:
        """Whether the lease was lost or abandoned; a lost consumer can only be closed, and replaced by a new one."""
        ...

    async def close(self) -> None:
        """Give back, unchanged and due at once, everything still owned, and leave. A second call does nothing.

        Claims in `keep` stay owned until this process ends. What a lost consumer held is left to `recover`.
        """
        ...

    def keep(self, claim: Claim) -> None:
        """Exempt `claim` from `close()`: its handler will not stop. It is taken over when this process has ended."""
        ...


class BroadcastReceiver(Protocol):
    """This process's ear for broadcasts: each at most once, none from before it was opened."""

    async def receive(self, wait: float) -> tuple[list[bytes], bool]:
        """Return what other processes broadcast since the last call, in order, and whether some may be missing.

        Waits up to `wait` seconds for the first one. The flag is True once after any time in which reception was
        impossible or so late that broadcasts may have been dropped. Frames sent with this receiver's `origin` are
        left out.

        Raises:
            QueueUnavailable: nothing could be received now; the next successful call reports a gap.
        """
        ...

    def wake(self) -> None:
        """Make a waiting `receive` return."""
        ...

    async def close(self) -> None:
        """Stop receiving."""
        ...


class MessageQueue(Protocol):
    """Durable subscriptions, and one independent delivery of every message for each."""

    @property
    def features(self) -> Features:
        """What this driver can do beyond the contract."""
        ...

    async def open(self) -> None:
        """Connect.

        Raises:
            QueueUnavailable: with one line that says why; it may be there later.
            QueueRejected: with one line that says what to change first: waiting does not help.
        """
        ...

    async def close(self) -> None:
        """Give everything back; consumers and receivers still open are abandoned. A second call does nothing.

        From then on every call that asks the queue for something raises `QueueClosed`, also one that is waiting.
        """
        ...

    def time(self) -> float:
        """Return the queue's own clock, in seconds since the epoch: every due time is by it."""
        ...

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> None:
        """Add subscriptions, events of subscriptions, and broadcast events; nothing is ever removed by absence.

        Every message accepted after it returns reaches every subscription declared, from whatever process it comes,
        also one that trusts a copy of `registry()` for up to `REGISTRY_TTL` seconds. Declaring the same again is
        cheap. A subscription kept under an alias is renamed with its backlog and its dead letters.

        Raises:
            SubscriptionConflict: nothing was added, for a name is kept as ordered and declared unordered, or the
                reverse, or a name and its alias are kept as two subscriptions.
        """
        ...

    async def registry(self) -> Registry:
        """Return what is declared now."""
        ...

    async def publish(self, messages: Sequence[Message]) -> None:
        """Accept all the messages, in order, or none: one delivery each for every subscription of its event.

        When it returns, the deliveries exist, as durably as the driver is. A transactional driver joins the ambient
        transaction: they exist if and only if it commits, and no consumer sees them before. Concurrent calls share
        round trips. A message with `due_at` reaches the subscriptions of this moment, no earlier than that time, and
        takes its place in a mailbox when due. Without an ordering key it takes the mailbox of the empty key. A message
        with `dedupe` is dropped if one with the same event and id was accepted with `dedupe` within the dedupe window,
        and not cancelled since. An id counts as accepted only if its transaction commits.

        Raises:
            QueueRejected: nothing was stored, and trying again will not help.
            QueueUnavailable: nothing was stored; trying again may help.
            QueueIndeterminate: the outcome is unknown; if the messages have `dedupe`, publishing them again decides it.
        """
        ...

    async def cancel(self, message_id: str) -> bool:
        """Make a message with a `due_at` never reach anyone; False when it is due already, unknown or cancelled.

        All its subscriptions or none. True also makes the queue forget the id, so that it can be published anew at
        once. A transactional driver joins the ambient transaction.
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
        """Open this process's ear for broadcasts."""
        ...

    async def consumer(self, info: WorkerInfo) -> Consumer:
        """Register a live worker."""
        ...

    async def stats(self) -> list[SubscriptionStats]:
        """Return what every subscription holds, by name."""
        ...

    async def warnings(self) -> list[str]:
        """Return what keeps the queue from doing well, beyond those counts: a line each, with what to do about it."""
        ...

    async def dead_letters(
        self,
        *,
        subscription: str | None = None,
        event: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[DeadLetter]:
        """Return at most `limit` dead letters, the first to die first, those after the id `after`."""
        ...

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        """Return one dead letter.

        Raises:
            DeadLetterNotFound: there is none of that id.
        """
        ...

    async def retry_dead(self, dead_ids: Sequence[str]) -> int:
        """Turn dead letters back into deliveries for their own subscription alone; return how many.

        They start anew: no failures, deferrals, takeovers or crashes; an ordered one joins the end of its mailbox.
        Unknown ids are skipped, and so are those whose subscription was retired.
        """
        ...

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        """Delete dead letters for good; return how many. Unknown ids are skipped."""
        ...

    async def pause(self, name: str) -> None:
        """Hand out nothing of a subscription, in any process, until `resume`; what was fetched goes on.

        As durable as the driver is.

        Raises:
            SubscriptionNotFound: nothing is kept under that name.
        """
        ...

    async def resume(self, name: str) -> None:
        """Undo `pause`.

        Raises:
            SubscriptionNotFound: nothing is kept under that name.
        """
        ...

    async def unblock(self, name: str, ordering_key: str, *, skip: bool) -> None:
        """Let a blocked mailbox go on: its head is tried anew with no failures, or becomes a dead letter with `skip`.

        Raises:
            SubscriptionNotFound: nothing is kept under that name.
            MailboxNotBlocked: that key is not blocked.
        """
        ...

    async def retire(
        self, name: str, *, event: str | None = None, backlog: Literal["refuse", "discard", "dead"] = "refuse"
    ) -> int:
        """Remove a subscription, or one event of it, and what waits for it; return how many deliveries that were.

        `backlog` says what becomes of them: they make the call fail, are deleted, or become dead letters. Scheduled
        and claimed ones are among them; the settlement of a claim that is gone is fenced. Dead letters stay.
        From its first step on nothing is handed out and nothing new arrives; the same call completes one that was
        interrupted.

        Raises:
            SubscriptionNotFound: nothing is kept under that name, or it has no such event.
            ListenerInUse: a live worker has this listener (when all of it is to go), or a backlog exists and
                `backlog` is "refuse".
        """
        ...
