"""The words that the bus and a queue driver speak: data only.

What exists once per message is a msgspec.Struct, which is made in a quarter of a dataclass's time.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a driver can do beyond the contract that all share. The bus asks these, never a driver's name."""

    durable: bool
    """Messages survive the end of the process that published them."""

    multi_process: bool
    """Several processes may open the same queue."""

    transactional: bool
    """`publish`, `cancel` and `broadcast` take part in the ambient transaction of the application's database."""

    max_body: int = 256 * 1024 * 1024
    """The largest `Message.body`, in bytes, that the driver stores; final once `open` has returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A durable wish: one delivery of every event in `events`, for the listener called `name`."""

    name: str
    """The listener's durable identity."""

    events: frozenset[str]
    """The wire names it listens to."""

    ordered: bool = False
    """One delivery at a time per ordering key, in publish order."""

    aliases: tuple[str, ...] = ()
    """Former names, whose subscription and backlog this one takes over."""


@dataclass(frozen=True, slots=True)
class Registry:
    """Which events anyone subscribed to durably, and which are broadcast: a copy, or views that follow what is kept."""

    routed: AbstractSet[str] = frozenset()
    """Wire names with at least one subscription."""

    broadcast: AbstractSet[str] = frozenset()
    """Wire names that some process once declared a broadcast listener for."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way into the queue."""

    id: str
    event: str
    """The wire name, by which the queue finds the subscriptions."""

    body: bytes
    """The whole frame, opaque to the queue."""

    published_at: float
    """Seconds since the epoch."""

    ordering_key: str | None = None
    due_at: float | None = None
    """Seconds since the epoch by `MessageQueue.time()`; None is now."""

    dedupe: bool = False
    """Accept this id of this event once within the dedupe window; drop repetitions without an error."""

    fresh: bool = False
    """The id was made for this very call: it is new, so that it need only be remembered, not looked for."""


class Delivery(msgspec.Struct, kw_only=True, eq=False):
    """One event for one subscription, as a consumer holds it."""

    id: int | str
    """The driver's own; unique within the queue, never reused."""

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
    """Times a handler asked for a later time."""

    takeovers: int = 0
    """Times its worker died while it held this delivery among others."""

    crashes: int = 0
    """Times its worker died while this delivery ran alone."""


class Claim(msgspec.Struct, kw_only=True, eq=False):
    """What a consumer owns until it settles it: one unordered delivery, or the first ones of one mailbox."""

    subscription: str
    deliveries: list[Delivery]
    ordered: bool = False
    ordering_key: str | None = None
    fence: int = 0
    """Names this claim: it grows strictly with every claim of the same mailbox or, if unordered, the same delivery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a delivery did not succeed, for people."""

    error: str
    """One line: the exception's class and message."""

    traceback: str = ""


class Outcome(Enum):
    """How a delivery's present claim ends."""

    DONE = auto()
    """It is over: deleted."""

    RETRY = auto()
    """It failed: `failures` + 1, due after `delay`."""

    DEFER = auto()
    """Its handler asked for later: `deferrals` + 1, due after `delay`."""

    RELEASE = auto()
    """Given back unchanged, due after `delay`."""

    PARK = auto()
    """Unchanged, and not handed out again until `Consumer.unpark` names what the settlement `needs`."""

    BLOCK = auto()
    """Ordered only: `failures` + 1; its key stays blocked until `MessageQueue.unblock`."""

    DEAD = auto()
    """`failures` + 1 if `failure` counts as one (`charge`); becomes a dead letter."""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one delivery's claim.

    Deliveries of an ordered claim are settled first to last. The settlement that leaves its delivery in the
    mailbox (RETRY, DEFER, RELEASE, PARK, BLOCK), or the claim's last one, says `close=True` and gives the mailbox back.
    """

    claim: Claim
    delivery: Delivery
    outcome: Outcome
    delay: float = 0.0
    """Seconds from the queue's now; used by RETRY, DEFER and RELEASE."""

    failure: Failure | None = None
    charge: bool = True
    """DEAD: whether this end counts as one more failure (not so for a delivery that killed its processes)."""

    needs: str | None = None
    """PARK: what a worker must know before it gets the delivery, such as a version of its event; None: its event."""

    close: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """Who a consumer is, for takeover and for people."""

    id: str
    """Unique for every incarnation: a worker that lost its lease comes back under a new id."""

    subscriptions: frozenset[str]
    """Listeners that this worker has; a live worker keeps them from being retired."""

    host: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A delivery that was given up, with all that is known about why."""

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
    """What a subscription holds at this moment. `ready` to `blocked` count every unfinished delivery once."""

    name: str
    events: frozenset[str] = frozenset()
    ordered: bool = False
    paused: bool = False
    workers: int = 0
    """Live workers that have this listener. 0 with a backlog: nobody will handle it until one comes."""

    ready: int = 0
    """Due now and unclaimed; for ordered ones, all that wait in mailboxes neither blocked nor parked.

    What its publisher delayed may count here from its time until the next `fetch` puts it into its mailbox.
    """

    retrying: int = 0
    """Waiting for the time that their last settlement asked for."""

    scheduled: int = 0
    """Delayed by their publisher and not due yet."""

    in_flight: int = 0
    """Claimed."""

    parked: int = 0
    """Waiting for a worker that knows the event; for ordered ones, all in a mailbox whose head does."""

    blocked: int = 0
    """Waiting in mailboxes whose head needs `unblock`."""

    dead: int = 0
    oldest: float | None = None
    """When the oldest unfinished delivery that is not scheduled was published; seconds since the epoch."""

    blocked_keys: Mapping[str, str] = field(default_factory=dict)
    """Blocked ordering keys and the last error of each one's head."""
