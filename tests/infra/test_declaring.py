"""The wait of `declare`, and its conflicts, as all drivers share them."""

import pytest

from infra.clock import FakeClock
from infra.mq import Subscription, SubscriptionConflict
from infra.mq.declaring import DeclareWait, refuse_conflict


def subscription(*, ordered: bool = False, aliases: tuple[str, ...] = ()) -> Subscription:
    return Subscription(name="work", events=frozenset({"Happened"}), ordered=ordered, aliases=aliases)


def test_new_name_has_no_conflict() -> None:
    refuse_conflict(subscription(aliases=("former",)), {"other": (1, True)})


def test_names_of_two_subscriptions_conflict() -> None:
    existing = {"work": (1, False), "former": (2, False)}
    with pytest.raises(SubscriptionConflict, match="former is declared as an alias of work"):
        refuse_conflict(subscription(aliases=("former",)), existing)


def test_names_of_one_subscription_do_not_conflict() -> None:
    refuse_conflict(subscription(aliases=("former",)), {"work": (1, False), "former": (1, False)})


def test_existing_order_conflicts_with_the_declared_one() -> None:
    with pytest.raises(SubscriptionConflict, match="exists as an ordered subscription"):
        refuse_conflict(subscription(aliases=("former",)), {"former": (1, True)})


class RecordingClock(FakeClock):
    """A clock that records how long it was asked to sleep, in place of sleeping."""

    slept = 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds


async def waited(clock: RecordingClock, wait: DeclareWait, changed_at: float) -> float:
    """Return the seconds that `declare` waits after a change."""
    clock.slept = 0.0
    await wait.after(changed_at)
    return clock.slept


async def test_declare_waits_until_no_publisher_uses_an_older_subscription_cache() -> None:
    clock = RecordingClock()
    wait = DeclareWait(clock, clock.time, 1.0)
    assert await waited(clock, wait, clock.time() - 0.5) == 0.5
    assert await waited(clock, wait, clock.time() - 1.0) == 0


async def test_declare_waits_once_for_each_change() -> None:
    clock = RecordingClock()
    wait, changed_at = DeclareWait(clock, clock.time, 1.0, longest_commit=30), clock.time()
    assert await waited(clock, wait, changed_at) == 1
    assert await waited(clock, wait, changed_at) == 0
    assert await waited(clock, wait, changed_at + 0.5) == 1


async def test_declare_never_waits_longer_than_the_copies_are_used() -> None:
    clock = RecordingClock()
    assert await waited(clock, DeclareWait(clock, clock.time, 1.0), clock.time() + 3600) == 1
