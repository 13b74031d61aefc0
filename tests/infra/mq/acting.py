"""Helpers of the SQLite driver's tests: subscriptions, messages, consumers, settlements."""

import itertools
from collections.abc import Collection, Iterable, Mapping

from bus.worker.claim_limits import CLAIM_LIMITS
from infra.mq import Claim, Consumer, Message, MessageQueue, Outcome, Settlement, Subscription, WorkerInfo

_worker_ids = itertools.count(1)


def subscription(name: str, *, events: Collection[str] = ("Happened",), ordered: bool = False) -> Subscription:
    return Subscription(name=name, events=frozenset(events), ordered=ordered)


def message(name: str, *, event: str = "Happened", key: str | None = None, due_at: float | None = None) -> Message:
    return Message(id=name, event=event, body=name.encode(), published_at=1.0, ordering_key=key, due_at=due_at)


def messages(count: int, *, keys: int = 1) -> list[Message]:
    return [message(f"m{each}", key=f"k{each % keys}") for each in range(count)]


async def consumer(queue: MessageQueue, name: str | None = None) -> Consumer:
    info = WorkerInfo(id=name or f"w{next(_worker_ids)}", subscriptions=frozenset({"work", "mail"}))
    return await queue.consumer(info, CLAIM_LIMITS)


def ids(claims: Iterable[Claim]) -> list[str]:
    return [delivery.message_id for claim in claims for delivery in claim.deliveries]


def done(claims: Iterable[Claim]) -> list[Settlement]:
    return [
        Settlement(claim=claim, delivery=it, outcome=Outcome.DONE, close=claim.ordered and it is claim.deliveries[-1])
        for claim in claims
        for it in claim.deliveries
    ]


async def handle_all(worker: Consumer, wants: Mapping[str, int]) -> list[str]:
    """Fetch and settle until nothing is due; return the message ids in the order of delivery."""
    handled: list[str] = []
    while claims := await worker.fetch(wants, wait=0):
        handled += ids(claims)
        assert await worker.settle(done(claims)) == []
    return handled
