"""No failing settlement blocks another settlement, and none is lost while the lease is valid."""

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy.exc import DataError, OperationalError, StatementError

from bus.metrics import BusMetrics
from bus.worker.settler import UNSTORABLE, Settler
from infra.clock import FakeClock
from infra.mq import Claim, ClaimedDelivery, Failure, Outcome, QueueClosed, QueueRejected, QueueUnavailable, Settlement


class Queue:
    """A queue that records settlements, and fails a whole call if `refusal` returns an error for one of them."""

    def __init__(self) -> None:
        self.lost = False
        self.settled: list[Settlement] = []
        self.calls = 0
        self.refusal: Callable[[Settlement], BaseException | None] = lambda _: None

    async def settle(self, batch: list[Settlement]) -> list[Settlement]:
        self.calls += 1
        await asyncio.sleep(0)
        for each in batch:
            if (error := self.refusal(each)) is not None:
                raise error
        self.settled += batch
        return []


def settlement(number: int, claim: Claim | None = None, outcome: Outcome = Outcome.DONE) -> Settlement:
    delivery = ClaimedDelivery(
        id=number, subscription="l", message_id=f"m{number}", event="e", ordering_key=None, body=b"", published_at=0.0
    )
    claim = claim or Claim(subscription="l", deliveries=[delivery])
    failure = Failure(error="bad") if outcome is not Outcome.DONE else None
    return Settlement(claim=claim, delivery=delivery, outcome=outcome, failure=failure)


class SettlerHarness:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.queue = Queue()
        self.dropped: list[Settlement] = []
        self.settler = Settler(self.queue, self.clock, BusMetrics(), self.dropped.append)  # type: ignore[arg-type]  # all that it uses

    async def settle(self, *settlements: Settlement, seconds: float = 100) -> list[int | str]:
        for each in settlements:
            self.settler.add(each)
        running = asyncio.create_task(self.settler.run())
        await self.clock.advance(seconds)
        running.cancel()
        await asyncio.wait([running])
        return [each.delivery.id for each in self.queue.settled]


FINAL = [
    QueueRejected("no"),
    DataError("s", None, ValueError()),
    StatementError("cannot be bound", "s", None, UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogate")),
    UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed"),
]


@pytest.mark.parametrize("error", FINAL, ids=lambda it: type(it).__name__)
async def test_rejected_settlement_in_a_batch_is_stored_without_its_error(error: Exception) -> None:
    harness = SettlerHarness()
    harness.queue.refusal = lambda it: error if it.failure == Failure(error="bad") else None
    batch = [settlement(n, outcome=Outcome.DEAD if n == 700 else Outcome.DONE) for n in range(1000)]
    assert await harness.settle(*batch) == list(range(1000))
    assert harness.queue.calls < 25
    assert [it.failure for it in harness.queue.settled if it.outcome is Outcome.DEAD] == [UNSTORABLE]
    assert harness.settler.idle.is_set()


async def test_settlement_rejected_in_every_form_is_released_or_dropped() -> None:
    harness = SettlerHarness()
    harness.queue.refusal = lambda it: (
        QueueRejected("no") if it.delivery.id == 1 and it.outcome is Outcome.RETRY else None
    )
    assert await harness.settle(*(settlement(n, outcome=Outcome.RETRY) for n in range(3))) == [0, 1, 2]
    assert [it.outcome for it in harness.queue.settled] == [Outcome.RETRY, Outcome.RELEASE, Outcome.RETRY]
    harness.queue.refusal = lambda it: QueueRejected("no") if it.delivery.id == 4 else None
    assert await harness.settle(*(settlement(n) for n in (3, 4, 5))) == [0, 1, 2, 3, 5]
    assert harness.settler.idle.is_set()


@pytest.mark.parametrize(
    "error",
    [QueueUnavailable("unreachable"), OperationalError("s", None, ValueError()), OSError(24, "no file descriptors")],
    ids=lambda it: type(it).__name__,
)
async def test_transient_error_retries_the_whole_batch(error: Exception) -> None:
    harness, refusals = SettlerHarness(), 5

    def refuse(_: Settlement) -> Exception | None:
        nonlocal refusals
        refusals -= 1
        return error if refusals >= 0 else None

    harness.queue.refusal = refuse
    assert await harness.settle(*(settlement(n) for n in range(100))) == list(range(100))
    assert harness.queue.calls == 6


async def test_settlement_with_a_persistent_unknown_error_blocks_no_other_settlement() -> None:
    harness = SettlerHarness()
    harness.queue.refusal = lambda it: AttributeError("a defect") if it.delivery.id == 3 else None
    assert sorted(await harness.settle(*(settlement(n) for n in range(8)))) == [0, 1, 2, 4, 5, 6, 7]
    assert not harness.settler.idle.is_set()
    harness.queue.refusal = lambda _: None
    assert sorted(await harness.settle()) == list(range(8))


async def test_settlements_of_one_claim_keep_their_order_despite_errors() -> None:
    harness = SettlerHarness()
    mailbox = Claim(subscription="l", deliveries=[], ordered=True)
    batch = [settlement(n, mailbox if n % 3 == 0 else None) for n in range(20)]
    refusals = 7

    def refuse(it: Settlement) -> Exception | None:
        nonlocal refusals
        if it.delivery.id == 6 and refusals:
            refusals -= 1
            return AttributeError("a defect")
        return None

    harness.queue.refusal = refuse
    settled = await harness.settle(*batch)
    assert sorted(settled) == list(range(20))
    assert [n for n in settled if isinstance(n, int) and n % 3 == 0] == [0, 3, 6, 9, 12, 15, 18]


async def test_settlements_in_flight_at_cancellation_are_sent_by_the_next_run() -> None:
    harness = SettlerHarness()
    harness.queue.refusal = lambda _: asyncio.CancelledError()
    assert await harness.settle(settlement(1), settlement(2), seconds=1) == []
    harness.queue.refusal = lambda _: None
    assert await harness.settle() == [1, 2]


async def test_lost_lease_drops_all_unsent_settlements() -> None:
    harness = SettlerHarness()
    harness.queue.refusal = lambda _: QueueClosed("lost")
    await harness.settle(settlement(1), settlement(2))
    assert (len(harness.dropped), harness.settler.idle.is_set()) == (2, True)
    harness.queue.lost = True
    harness.queue.refusal = lambda _: QueueUnavailable("unreachable")
    await harness.settle(settlement(3))
    assert (len(harness.dropped), harness.settler.idle.is_set()) == (3, True)
