"""Test of the model: a search of a few seconds finds each of these bugs in the memory driver."""

# ruff: noqa: ANN401  # what is put into a class from outside takes any self
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis.stateful import run_state_machine_as_test
from msgspec.structs import replace

from infra.mq import Claim, ClaimLimits, Message, Outcome, Settlement
from infra.mq.drivers.memory import (
    MemoryQueue,
    agenda,
    backlog,
    consumer,
    dedupe,
    ordered,
    scheduled,
    store,
    unordered,
    worker,
)
from infra.mq.drivers.memory.store import PendingDelivery
from tests.contract.budget import search
from tests.contract.harness import DRIVERS
from tests.contract.machine import Mismatch
from tests.contract.whole_machine import machine_of

Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]
BUGS: dict[str, Break] = {}


def bug(break_it: Break) -> Break:
    """Register a function that puts a bug into the driver."""
    BUGS[break_it.__name__] = break_it
    return break_it


@bug
def ordered_settlements_are_unfenced(patch: Patch) -> None:
    patch.setattr(ordered.OrderedBacklog, "_owned", lambda self, claim, _: self._mailboxes.get(claim.ordering_key))


@bug
def unordered_settlements_of_an_earlier_claim_count(patch: Patch) -> None:
    honest = unordered.UnorderedBacklog.settle

    def settle(self: Any, settlement: Settlement, owner: worker.MemoryWorker, now: float) -> bool:
        entry = self._entries.get(settlement.delivery.id)
        if entry is not None:
            settlement = replace(settlement, claim=replace(settlement.claim, fence=entry.fence))
        return honest(self, settlement, owner, now)

    patch.setattr(unordered.UnorderedBacklog, "settle", settle)


@bug
def a_cancelled_id_stays_taken(patch: Patch) -> None:
    patch.setattr(dedupe.RecentIds, "forget", lambda *_: None)


@bug
def unordered_done_is_fenced(patch: Patch) -> None:
    honest = unordered.UnorderedBacklog.settle

    def settle(self: Any, settlement: Settlement, owner: worker.MemoryWorker, now: float) -> bool:
        entry = self._entries.get(settlement.delivery.id)
        return entry is not None and entry.owner is owner and honest(self, settlement, owner, now)

    patch.setattr(unordered.UnorderedBacklog, "settle", settle)


@bug
def the_fence_of_a_forgotten_mailbox_starts_again_at_1(patch: Patch) -> None:
    honest = ordered.OrderedBacklog._open

    def open_(
        self: Any, mailbox: ordered.Mailbox, batch: list[PendingDelivery], owner: worker.MemoryWorker, name: str
    ) -> Claim:
        self.store.fences = itertools.count(mailbox.fence + 1)
        return honest(self, mailbox, batch, owner, name)

    patch.setattr(ordered.OrderedBacklog, "_open", open_)


@bug
def the_wake_up_of_a_closed_mailbox_is_lost(patch: Patch) -> None:
    honest = ordered.OrderedBacklog.close

    def close(self: Any, mailbox: ordered.Mailbox) -> None:
        arrived = len(mailbox.entries) > mailbox.claimed
        honest(self, mailbox)
        if arrived:
            mailbox.state = backlog.State.IDLE

    patch.setattr(ordered.OrderedBacklog, "close", close)


@bug
def a_retry_loses_its_place_at_the_head(patch: Patch) -> None:
    honest = ordered.OrderedBacklog._close_for

    def close_for(self: Any, mailbox: ordered.Mailbox, outcome: Outcome, due_at: float | None) -> None:
        mailbox.entries.rotate(-1)
        honest(self, mailbox, outcome, due_at)

    patch.setattr(ordered.OrderedBacklog, "_close_for", close_for)


@bug
def a_delay_ends_half_a_second_early(patch: Patch) -> None:
    honest = agenda.Agenda.promote
    patch.setattr(agenda.Agenda, "promote", lambda self, now: honest(self, now + 0.5))


@bug
def a_delay_never_ends_for_a_mailbox(patch: Patch) -> None:
    patch.setattr(ordered.Mailbox, "fall_due", lambda _: None)


@bug
def a_retry_comes_at_once(patch: Patch) -> None:
    patch.setattr(agenda.Agenda, "add", lambda _, __, item: item.fall_due())


@bug
def a_dead_letter_is_dropped(patch: Patch) -> None:
    patch.setattr(store.Store, "add_dead_letter", lambda *_: None)


@bug
def a_retried_dead_letter_is_dropped(patch: Patch) -> None:
    async def retry_dead(self: Any, dead_ids: Sequence[str]) -> int:
        return int(await self.discard_dead(dead_ids))

    patch.setattr(MemoryQueue, "retry_dead", retry_dead)


@bug
def a_release_counts_as_a_failure(patch: Patch) -> None:
    def count(entry: store.PendingDelivery, settlement: Settlement) -> None:
        backlog.count_outcome(entry, settlement)
        entry.failures += settlement.outcome is Outcome.RELEASE

    patch.setattr(unordered, "count_outcome", count)


@bug
def a_takeover_counts_as_a_failure(patch: Patch) -> None:
    def charge(self: store.PendingDelivery) -> None:
        self.failures += 1

    patch.setattr(store.PendingDelivery, "charge_death", charge)


@bug
def the_mark_of_isolation_outlives_its_claim(patch: Patch) -> None:
    def charge(self: store.PendingDelivery) -> None:
        self.crashes += self.isolated
        self.takeovers += not self.isolated

    patch.setattr(store.PendingDelivery, "charge_death", charge)


@bug
def a_dead_workers_claims_are_forgotten(patch: Patch) -> None:
    patch.setattr(unordered.UnorderedDelivery, "take_over", lambda _: 1)


@bug
def a_live_workers_claims_are_taken(patch: Patch) -> None:
    honest = consumer.MemoryConsumer.recover

    async def recover(self: Any) -> int:
        stolen = [unit for it in self._store.workers.values() if it is not self._worker for unit in it.holding]
        return int(await honest(self) + sum(unit.take_over() for unit in stolen))

    patch.setattr(consumer.MemoryConsumer, "recover", recover)


@bug
def closing_charges_what_it_gives_back(patch: Patch) -> None:
    patch.setattr(unordered.UnorderedDelivery, "release", unordered.UnorderedDelivery.take_over)


@bug
def a_cancelled_message_still_comes(patch: Patch) -> None:
    patch.setattr(scheduled.Plan, "cancel", lambda self, it: [each.message for each in self._by_id.get(it, [])])


@bug
def a_pause_is_ignored_by_ordered_subscriptions(patch: Patch) -> None:
    patch.setattr(ordered.OrderedBacklog, "paused", property(lambda _: False, lambda *_: None), raising=False)


@bug
def a_duplicate_is_accepted(patch: Patch) -> None:
    honest = MemoryQueue.publish

    async def publish(self: MemoryQueue, messages: Sequence[Message]) -> None:
        self._recent._accepted.clear()
        await honest(self, messages)

    patch.setattr(MemoryQueue, "publish", publish)


@bug
def a_blocked_key_unblocks_itself(patch: Patch) -> None:
    honest = ordered.OrderedBacklog._close_for

    def close_for(self: Any, mailbox: ordered.Mailbox, outcome: Outcome, due_at: float | None) -> None:
        honest(self, mailbox, Outcome.RETRY if outcome is Outcome.BLOCK else outcome, due_at)

    patch.setattr(ordered.OrderedBacklog, "_close_for", close_for)


@bug
def suspects_are_not_claimed_alone(patch: Patch) -> None:
    honest = ordered._batch

    def batch(mailbox: ordered.Mailbox, limits: ClaimLimits) -> list[PendingDelivery]:
        return honest(mailbox, dataclasses.replace(limits, suspect_after=1000))

    patch.setattr(ordered, "_batch", batch)


@pytest.mark.thorough
@pytest.mark.parametrize("break_it", BUGS.values(), ids=BUGS)
def test_model_detects_a_bug_of_the_memory_driver(break_it: Break, monkeypatch: Patch, tmp_path: Path) -> None:
    break_it(monkeypatch)
    with pytest.raises(Mismatch):
        run_state_machine_as_test(machine_of(DRIVERS["memory"], tmp_path), settings=search(150, shrink=False))
