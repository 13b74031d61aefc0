"""The data types of the contract between the bus and a queue driver.

Types with one instance per message are msgspec.Structs, which take a quarter of a dataclass's time to construct.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

import msgspec

from infra.mq.limits import MAX_BODY

BacklogPolicy = Literal["refuse", "discard", "dead"]
"""What `MessageQueue.retire` does with pending deliveries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Abilities of a driver beyond the common contract. The bus decides by these, never by a driver's name."""

    durable: bool
    """Messages survive the end of the process that published them."""

    multi_process: bool
    """Several processes may open the same queue."""

    transactional: bool
    """`publish`, `cancel` and `broadcast` take part in the ambient transaction of the application's database."""

    max_body: int = MAX_BODY
    """The largest `Message.body`, in bytes, that the driver stores; final once `open` has returned.

    A publish with a larger one is refused whole, before any of it is sent.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A durable subscription: one delivery of every event in `events` for the listener called `name`."""

    name: str
    """The listener's durable identity."""

    events: frozenset[str]
    """The wire names of its events."""

    ordered: bool = False
    """One delivery at a time per ordering key, in publish order."""

    aliases: tuple[str, ...] = ()
    """Former names; this subscription takes over the subscription and the backlog of each."""


@dataclass(frozen=True, slots=True)
class Registry:
    """The events with subscriptions and those with broadcast listeners: a copy, or views of the current state."""

    routed: AbstractSet[str] = frozenset()
    """Wire names with at least one subscription."""

    broadcast: AbstractSet[str] = frozenset()
    """Wire names for which a process has ever declared a broadcast listener."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One event, as it is published to the queue."""

    id: str
    event: str
    """The wire name, by which the queue finds the subscriptions."""

    body: bytes
    """The encoded frame, opaque to the queue."""

    published_at: float
    """Seconds since the epoch."""

    ordering_key: str | None = None
    due_at: float | None = None
    """Seconds since the epoch by `MessageQueue.time()`; None means now."""

    dedupe: bool = False
    """Accept this id of this event once within the dedupe window; drop duplicates without an error."""

    accepted_since: float | None = None
    """Since when the message exists, if its sender may send it again after the dedupe window; needs `dedupe`.

    Seconds since the epoch by `MessageQueue.time()`. The message is a duplicate if its event and id were accepted at or
    after this time, in a message with `accepted_since` too. The latest `RESENT_IDS` such ids are remembered for
    `RESENT_FOR` seconds. A transactional driver ignores it: nothing is sent to such a queue again.
    """

    fresh: bool = False
    """The id was generated for this call and is new: the driver must store it, but need not check for a duplicate."""


class ClaimedDelivery(msgspec.Struct, kw_only=True, eq=False):
    """One event for one subscription, as a consumer claims it."""

    id: int | str
    """The driver's own id; unique within the queue, never reused."""

    subscription: str
    message_id: str
    event: str
    ordering_key: str | None
    """The message's key; a delivery of an unordered subscription may carry one too."""

    body: bytes
    published_at: float
    failures: int = 0
    """Attempts that ended in an error. Never counts shutdowns, deferrals or crashes."""

    deferrals: int = 0
    """Number of times a handler asked to be called again later."""

    takeovers: int = 0
    """Number of workers that died while they held this delivery among others."""

    crashes: int = 0
    """Number of workers that died while this delivery ran alone."""


class Claim(msgspec.Struct, kw_only=True, eq=False):
    """The deliveries that a consumer owns until it settles them: one unordered, or the first ones of one mailbox."""

    subscription: str
    deliveries: list[ClaimedDelivery]
    ordered: bool = False
    ordering_key: str | None = None
    fence: int = 0
    """Identifies this claim; strictly increases with every claim of the same mailbox or, if unordered, delivery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a delivery did not succeed, for people."""

    error: str
    """One line: the exception's class and message."""

    traceback: str = ""


class Outcome(Enum):
    """How a delivery's current claim ends."""

    DONE = auto()
    """The delivery is handled: it is deleted."""

    RETRY = auto()
    """The handler failed: `failures` + 1, due after `delay`."""

    DEFER = auto()
    """The handler asked for a later time: `deferrals` + 1, due after `delay`."""

    RELEASE = auto()
    """The delivery is released unchanged, due after `delay`."""

    PARK = auto()
    """The delivery is unchanged, and cannot be claimed until `Consumer.unpark` is called with what `needs` names."""

    BLOCK = auto()
    """Ordered only: `failures` + 1; the mailbox is blocked until `MessageQueue.unblock`."""

    DEAD = auto()
    """The delivery becomes a dead letter; `failures` + 1 if `charge` is set."""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one delivery's claim.

    Deliveries of an ordered claim are settled first to last. The settlement that leaves its delivery in the mailbox
    (RETRY, DEFER, RELEASE, PARK, BLOCK), or else the claim's last one, has `close=True` and releases the mailbox.
    """

    claim: Claim
    delivery: ClaimedDelivery
    outcome: Outcome
    delay: float = 0.0
    """Seconds from the queue's current time; used by RETRY, DEFER and RELEASE."""

    failure: Failure | None = None
    charge: bool = True
    """DEAD: whether this counts as one more failure (False for a delivery whose handling ended its processes)."""

    needs: str | None = None
    """PARK: what a worker must know to claim the delivery, such as a version of its event; None: the event itself."""

    close: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """The identity of a consumer, for takeover and for display."""

    id: str
    """Unique for every registration: a worker that lost its lease registers again under a new id."""

    subscriptions: frozenset[str]
    """Names of this worker's listeners, which cannot be retired while the worker lives."""

    host: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimLimits:
    """The limits of a consumer's claims, as the bus chooses them; each is at least 1."""

    suspect_after: int
    """Number of takeovers from which on a delivery comes in a claim of its own."""

    mailbox_batch: int
    """The largest number of deliveries of one mailbox in a claim, unless few mailboxes are due; see `mailbox_run`."""

    fetch_bytes: int
    """The largest size, in bytes, of all message bodies that one `fetch` returns beyond its first claim."""

    mailbox_run: int = 1
    """The largest number of deliveries of one mailbox in a claim while fewer mailboxes are due than wanted.

    A driver may return shorter claims; a number below `mailbox_batch` has no effect. See `Consumer.fetch`.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A delivery that is not attempted any more, with its last error."""

    id: str
    subscription: str
    message_id: str
    event: str
    ordering_key: str | None
    body: bytes
    error: str
    traceback: str
    failures: int
    crashes: int
    published_at: float
    died_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionStats:
    """The counts of a subscription. `ready` to `blocked` count every unfinished delivery exactly once."""

    name: str
    events: frozenset[str] = frozenset()
    ordered: bool = False
    paused: bool = False
    workers: int = 0
    """Live workers that have this listener; with 0, its backlog waits until such a worker starts."""

    ready: int = 0
    """Due now and unclaimed; if ordered, all deliveries that wait in mailboxes neither blocked nor parked.

    A delivery that its publisher delayed may count here from its due time until the next `fetch` moves it into its
    mailbox.
    """

    retrying: int = 0
    """Waiting for the due time that their last settlement set."""

    scheduled: int = 0
    """Delayed by their publisher and not due yet."""

    in_flight: int = 0
    """Claimed."""

    parked: int = 0
    """Waiting for a worker that knows the event; if ordered, all deliveries of a mailbox whose head waits for one."""

    blocked: int = 0
    """Waiting in blocked mailboxes for `MessageQueue.unblock`."""

    dead: int = 0
    oldest: float | None = None
    """Publish time of the oldest unfinished delivery that is not scheduled; seconds since the epoch."""

    blocked_keys: Mapping[str, str] = field(default_factory=dict)
    """Blocked ordering keys, each with the last error of its mailbox's head."""
