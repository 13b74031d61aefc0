"""The interface between the SQL driver and a dialect; all SQL is written behind it."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from infra.clock import Clock
from infra.mq.types import (
    BacklogPolicy,
    Claim,
    ClaimLimits,
    DeadLetter,
    Message,
    Registry,
    Settlement,
    Subscription,
    SubscriptionStats,
    WorkerInfo,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlOptions:
    """The settings of the SQL driver. Times are in seconds."""

    dedupe_window: float
    """The time for which the ids of messages with `dedupe` are stored."""

    broadcast_kept: float
    """The time for which broadcasts are stored for processes that poll late."""

    longest_silence: float
    """The time without a poll of the database after which broadcasts may have been missed."""

    patience: float
    """The time that a write waits for other writers."""

    lease: float
    """PostgreSQL: the lease time of workers."""

    synchronous: Literal["FULL", "NORMAL"]
    """SQLite: with "FULL" a commit survives a power cut, with "NORMAL" only the end of the process."""


class Membership(Protocol):
    """A registered worker of this process, with its lease."""

    @property
    def alive(self) -> bool:
        """Whether this worker has its lease, as far as this process knows."""
        ...

    @property
    def valid_until(self) -> float:
        """The value of `Consumer.valid_until`."""
        ...

    def renew(self) -> bool:
        """Renew the lease; return False if it is lost. May be called from any thread."""
        ...

    def abandon(self) -> None:
        """End the lease at once, so that the claims are recovered. May be called from any thread."""
        ...


M = TypeVar("M", bound=Membership)


class WorkerOperations(Protocol[M]):
    """The queue's operations for workers; each call states the membership that `join` returned."""

    async def join(self, info: WorkerInfo, now: float) -> M:
        """Register a live worker."""
        ...

    async def leave(self, member: M, /, keep: Collection[Claim], now: float) -> None:
        """Release all claims but `keep`, and unregister the worker if it keeps none."""
        ...

    async def next_due(self, names: Collection[str]) -> float | None:
        """Return the time at which a delivery of these subscriptions may be due; cheap, and takes no lock."""
        ...

    async def claim(self, member: M, /, wants: Mapping[str, int], limits: ClaimLimits, now: float) -> list[Claim]:
        """Claim due deliveries within `limits`; raise `QueueClosed` if the worker is considered dead.

        Claims of a call whose caller was cancelled are released at the latest in the next `next_due`,
        `claim`, `recover` or `leave`.
        """
        ...

    async def settle(self, member: M, /, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
        """Implement `Consumer.settle`."""
        ...

    async def isolate(self, member: M, /, claim: Claim) -> bool:
        """Implement `Consumer.isolate`."""
        ...

    async def recover(self, now: float) -> int:
        """Implement `Consumer.recover`."""
        ...

    async def unpark(self, known: Mapping[str, Collection[str]], now: float) -> int:
        """Implement `Consumer.unpark`."""
        ...


class OperatorCommands(Protocol):
    """Statistics, dead letters and the commands of operators."""

    async def stats(self, now: float) -> list[SubscriptionStats]:
        """Implement `MessageQueue.stats`."""
        ...

    async def warnings(self) -> list[str]:
        """Implement `MessageQueue.warnings`."""
        ...

    async def dead_letters(
        self, subscription: str | None, event: str | None, limit: int, after: str | None
    ) -> list[DeadLetter]:
        """Implement `MessageQueue.dead_letters`."""
        ...

    async def dead_letter(self, dead_id: str) -> DeadLetter:
        """Implement `MessageQueue.dead_letter`."""
        ...

    async def retry_dead(self, dead_ids: Sequence[str], now: float) -> int:
        """Implement `MessageQueue.retry_dead`."""
        ...

    async def discard_dead(self, dead_ids: Sequence[str]) -> int:
        """Implement `MessageQueue.discard_dead`."""
        ...

    async def set_paused(self, name: str, *, paused: bool) -> None:
        """Implement `MessageQueue.pause` and `resume`."""
        ...

    async def unblock(self, name: str, ordering_key: str, now: float, *, skip: bool) -> None:
        """Implement `MessageQueue.unblock`."""
        ...

    async def retire(self, name: str, event: str | None, backlog: BacklogPolicy, now: float) -> int:
        """Implement `MessageQueue.retire`."""
        ...


class QueueDialect(Protocol):
    """The queue on one kind of database: its state changes, each atomic and durable, and notifications of changes.

    `workers` has the operations of workers, `commands` those of operators.

    Only `publish`, `cancel`, `scheduled` and `broadcast` join the ambient transaction. An operation that is impossible
    at present raises `QueueUnavailable`. `now` is the queue's time, in seconds since the epoch.
    """

    @property
    def clock(self) -> Clock:
        """The queue's clock; all due times refer to it."""
        ...

    @property
    def workers(self) -> WorkerOperations[Any]:
        """The operations of this process's workers, with the dialect's own memberships."""
        ...

    @property
    def commands(self) -> OperatorCommands:
        """The operations for operators."""
        ...

    @property
    def interruptions(self) -> int:
        """The number of times so far that changes of other processes may have been missed."""
        ...

    async def open(self) -> None:
        """Connect, and check that the queue's tables exist."""
        ...

    async def close(self) -> None:
        """Complete the submitted operations, and disconnect."""
        ...

    def watch(self, event: asyncio.Event) -> None:
        """Set `event` whenever anything may have changed, until `unwatch`."""
        ...

    def unwatch(self, event: asyncio.Event) -> None:
        """Stop setting `event`."""
        ...

    async def publish(self, messages: Sequence[Message], now: float) -> None:
        """Implement `MessageQueue.publish`."""
        ...

    async def cancel(self, message_id: str, now: float) -> bool:
        """Implement `MessageQueue.cancel`."""
        ...

    async def scheduled(self, message_id: str, now: float) -> bool:
        """Implement `MessageQueue.scheduled`."""
        ...

    async def broadcast(self, frames: Sequence[bytes], origin: str, now: float) -> None:
        """Implement `MessageQueue.broadcast`."""
        ...

    async def last_broadcast(self) -> int:
        """Return the number of the last broadcast; a receiver that opens now gets only later ones."""
        ...

    async def broadcasts_after(self, number: int, origin: str) -> tuple[list[bytes], int, bool]:
        """Return the later frames of other origins, the last number read, and whether frames are missing."""
        ...

    async def declare(self, subscriptions: Collection[Subscription], broadcasts: Collection[str]) -> float:
        """Add missing subscriptions and events; return the time of the last change of the registry."""
        ...

    async def registry(self) -> Registry:
        """Implement `MessageQueue.registry`."""
        ...
