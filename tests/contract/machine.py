"""A state machine that makes random calls to a queue and to the model; each difference is a bug in one of them."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from infra.clock import FakeClock
from infra.mq import Claim, Consumer, DeadLetter, MessageQueue, Outcome, QueueError, Settlement
from tests.contract.acting import EVENT, consumer, declare, message, subscription
from tests.contract.harness import Driver, Harness
from tests.contract.model import LINE, PLAIN, Copy, Model, Stage, counts_of
from tests.contract.steps import Step, steps

T = TypeVar("T")


class Mismatch(AssertionError):
    """A difference between queue and model."""


def check(*, true: bool, otherwise: str) -> None:
    """Raise Mismatch unless `true`."""
    if not true:
        raise Mismatch(otherwise)


@dataclass(slots=True, eq=False)
class Held:
    """A claim, its copies in the model, and how many of these are settled."""

    worker: Consumer
    claim: Claim
    name: str
    """The model's name of the subscription."""

    copies: list[Copy]
    settled: int = 0


class QueueMachine(RuleBasedStateMachine):
    """Two workers on one unordered and one ordered subscription of the same event, with two keys."""

    driver: ClassVar[Driver]
    stores: ClassVar[Path]
    """The parent folder of the stores' folders."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.stores))
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.context = self.open()
        self.harness = self.run(self.context.__aenter__())
        self.model = Model(self.clock.time(), self.harness.dedupe_window)
        self.held: list[Held] = []
        self.dead_workers: list[str] = []
        self.published: list[str] = []
        self.names = {PLAIN: [PLAIN], LINE: [LINE]}
        """Every name that a subscription of the model ever had, the present one last."""

        self.failed = False

    def open(self) -> AbstractAsyncContextManager[Harness]:
        """Return the context manager of the harness, not entered yet."""
        return self.driver.open(self.folder, self.clock)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end on the machine's event loop."""
        return self.runner.get_loop().run_until_complete(work)

    @initialize()
    def begin(self) -> None:
        self.run(self._begin())

    async def _begin(self) -> None:
        self.queues = [await self.new_queue(), await self.new_queue()]
        await declare(self.harness, self.queues[0], subscription(PLAIN), subscription(LINE, ordered=True))
        self.model.now = self.clock.time()
        self.workers = [await self._join(it) for it in self.queues]

    async def new_queue(self) -> MessageQueue:
        """Return another queue, as of another process."""
        return await self.harness.queue()

    async def _join(self, queue: MessageQueue) -> Consumer:
        return await consumer(queue, *(name for names in self.names.values() for name in names))

    @rule(step=steps())
    def do(self, step: Step) -> None:
        name, values = step
        with self._reporting_failures():
            getattr(self, name)(**values)
            self._compare_counts()

    @contextmanager
    def _reporting_failures(self) -> Iterator[None]:
        try:
            yield
        except QueueError as error:
            self.failed = True
            raise Mismatch(f"the queue refused what the model allows: {error!r}") from error
        except BaseException:
            self.failed = True
            raise

    def publish(self, queue: int, key: str, delay: float | None, times: int) -> None:
        number = len(self.published)
        due = None if delay is None else self.clock.time() + delay
        messages = [message(f"m{number + it}", key=key, due_at=due, dedupe=True) for it in range(times)]
        self.run(self.queues[queue].publish(messages))
        self.published += [each.id for each in messages]
        for each in messages:
            self.model.publish(each.id, key, due)

    def publish_again(self, which: int, key: str) -> None:
        if not self.published:
            return
        message_id = self.published[-1 - which % len(self.published)]
        accepted_at = self.model.accepted.get(message_id)
        if accepted_at is None or abs(self.clock.time() - accepted_at - self.harness.dedupe_window) > 1:
            self.run(self.queues[0].publish([message(message_id, key=key, dedupe=True)]))
            self.model.publish(message_id, key, None)

    def reschedule(self, which: int, key: str, delay: float) -> None:
        """Cancel a scheduled message, or one published for this, and publish its id again for another time."""
        if not any(self.model.scheduled(it) for it in self.published):
            self.publish(0, key, 5.0, 1)
        scheduled = [it for it in self.published if self.model.scheduled(it)]
        message_id = scheduled[which % len(scheduled)]
        self.cancel(len(self.published) - 1 - self.published.index(message_id))
        due = self.clock.time() + delay
        self.run(self.queues[1].publish([message(message_id, key=key, due_at=due, dedupe=True)]))
        self.model.publish(message_id, key, due)

    def cancel(self, which: int) -> None:
        if not self.published:
            return
        message_id = self.published[-1 - which % len(self.published)]
        waiting = self.model.scheduled(message_id)
        check(true=self.run(self.queues[1].cancel(message_id)) == bool(waiting), otherwise=f"cancel of {message_id}")
        for copy in waiting:
            copy.stage = Stage.ENDED
        if waiting:
            del self.model.accepted[message_id]

    def advance(self, seconds: float) -> None:
        self.run(self.clock.advance(seconds))
        self.model.advance(self.clock.time())
        for worker in self.workers:
            check(true=worker.renew(), otherwise="a live worker lost its lease")

    def fetch(self, which: int, name: str, limit: int) -> None:
        worker, wants = self.workers[which], {self._asked(which, name): limit}
        if name in self.model.paused:
            check(true=self.run(worker.fetch(wants, wait=0)) == [], otherwise=f"{name} is paused")
            self.resume(name)
        claims = self.run(worker.fetch(wants, wait=0))
        possible = self.model.claimable(name)
        expected = min(limit, len(possible))
        check(true=len(claims) == expected, otherwise=f"{len(claims)} claims of {name} instead of {expected}")
        for claim in claims:
            self._take(worker, claim, name, possible)

    def _asked(self, which: int, name: str) -> str:
        """Return a worker's name of a subscription: the first worker keeps the oldest name."""
        return self.names[name][-which]

    def _take(self, worker: Consumer, claim: Claim, name: str, possible: list[list[Copy]]) -> None:
        asked = {claim.subscription, *(it.subscription for it in claim.deliveries)}
        check(true=len(asked) == 1 and asked <= {*self.names[name]}, otherwise=f"{claim} answers under another name")
        for copies in possible:
            pairs = zip(copies, claim.deliveries, strict=False)
            free = len(copies) == len(claim.deliveries) and all(it.owner is None for it in copies)
            if free and all(copy.matches(it) for copy, it in pairs):
                break
        else:
            raise Mismatch(f"{claim} is none of {possible}")
        possible.remove(copies)
        check(true=claim.ordered == (name == LINE), otherwise=f"{claim} is of the wrong kind")
        check(true=not claim.ordered or claim.ordering_key == copies[0].key, otherwise=f"{claim} has another key")
        last = self.model.fences.get(fenced_by(claim, name), 0)
        check(true=claim.fence > last, otherwise=f"the fence of {claim} is not above {last}")
        self.model.fences[fenced_by(claim, name)] = claim.fence
        for copy in copies:
            copy.owner = worker.info.id
        self.held.append(Held(worker, claim, name, copies))

    def succeed(self, which: int, done: int) -> None:
        self._settle(self._some(which), [Outcome.DONE] * done, 0.0)

    def fail(self, which: int, done: int, outcome: Outcome, delay: float) -> None:
        held = self._some(which)
        if outcome is Outcome.BLOCK and not held.claim.ordered:
            outcome = Outcome.RETRY
        self._settle(held, [Outcome.DONE] * done + [outcome], delay)

    def settle_again(self, which: int, by: int, outcome: Outcome) -> None:
        """Settle a claim, let a worker claim the same deliveries again, and settle the earlier claim once more."""
        held = self._some(which)
        if held.name in self.model.paused:
            self.resume(held.name)
        self._settle(held, [Outcome.RETRY], 0.0)
        self.fetch(by, held.name, 100)
        if held in self.held:
            repeated = Outcome.RETRY if outcome is Outcome.BLOCK and not held.claim.ordered else outcome
            self._settle(held, [repeated], 0.0)

    def _some(self, which: int) -> Held:
        """Return one of the claims; make claims first if none exists."""
        if not self.held:
            self.publish(0, "ab"[which % 2], None, 2)
            for name in (PLAIN, LINE):
                self.fetch(which % 2, name, 2)
        return self.held[which % len(self.held)]

    def _settle(self, held: Held, outcomes: list[Outcome], delay: float) -> None:
        if held.worker.info.id in self.dead_workers:
            return  # The contract does not cover settlements of a dead worker before its recovery.
        settlements: list[Settlement] = []
        left = len(held.copies) - held.settled
        outcomes = outcomes[-left:]
        for index, outcome in enumerate(outcomes):
            delivery = held.claim.deliveries[held.settled + index]
            stays = outcome not in {Outcome.DONE, Outcome.DEAD}
            close = stays or index == left - 1
            settlements.append(
                Settlement(
                    claim=held.claim, delivery=delivery, outcome=outcome, delay=delay if stays else 0, close=close
                )
            )
        fenced = self.run(held.worker.settle(settlements))
        owned = self._owned(held)
        unfenced = owned or (settlements[0].outcome is Outcome.DONE and not held.claim.ordered)
        check(true=fenced == ([] if unfenced else settlements), otherwise=f"fenced were {fenced}")
        if not owned:
            self._succeed_unfenced(held, unfenced=unfenced)
            return
        for settlement in settlements:
            copy = held.copies[held.settled]
            self.model.settle(copy, settlement.outcome, settlement.delay)
            copy.owner = None
            held.settled += 1
        if settlements[-1].close:
            self._release(held)

    def _succeed_unfenced(self, held: Held, *, unfenced: bool) -> None:
        self.held.remove(held)
        copy = held.copies[0]
        if unfenced and copy.stage in {Stage.WAITING, Stage.PARKED}:
            copy.stage, copy.owner = Stage.ENDED, None

    def _release(self, held: Held) -> None:
        for copy in held.copies[held.settled :]:
            copy.owner = None
        if held.copies[-1].stage is not Stage.ENDED:
            held.settled = 0  # The claim stays as a stale one, whose settlements must all be fenced.
        else:
            self.held.remove(held)

    def _owned(self, held: Held) -> bool:
        if self.model.fences[fenced_by(held.claim, held.name)] != held.claim.fence:
            return False
        return held.copies[held.settled].owner == held.worker.info.id

    def isolate(self, which: int) -> None:
        held = self._some(which)
        if held.worker.info.id in self.dead_workers:
            return
        owned = self._owned(held)
        check(true=self.run(held.worker.isolate(held.claim)) == owned, otherwise=f"isolating {held.claim}")
        if owned:
            held.copies[held.settled].isolated = True

    def poison(self, which: int) -> None:
        """Let an isolated delivery crash its worker."""
        held = self._some(which)
        if held.worker in self.workers:
            self.isolate(which)
            self.take_over(self.workers.index(held.worker))

    def crash(self, which: int) -> None:
        victim = self.workers[which]
        self.run(self.harness.crash(victim))
        self.dead_workers.append(victim.info.id)
        self.workers[which] = self.run(self._join(self.queues[which]))

    def recover(self, which: int) -> None:
        recovered = self.run(self.workers[which].recover())
        expected = self.model.release(self.dead_workers, dead=True)
        self.dead_workers.clear()
        check(true=recovered == expected, otherwise=f"recovered {recovered} instead of {expected}")

    def take_over(self, which: int) -> None:
        """Let one worker crash, and the other one take over its claims."""
        self.crash(which)
        self.recover(1 - which)
        for name in (PLAIN, LINE):
            self.fetch(1 - which, name, 4)

    def close(self, which: int) -> None:
        leaver = self.workers[which]
        self.run(leaver.close())
        self.model.release([leaver.info.id], dead=False)
        self.held = [it for it in self.held if it.worker is not leaver]
        self.workers[which] = self.run(self._join(self.queues[which]))

    def unpark(self) -> None:
        known = {names[-1]: [EVENT] for names in self.names.values()}
        unparked = self.run(self.workers[0].unpark(known))
        check(true=unparked == self.model.unpark(), otherwise=f"unparked {unparked}")

    def unblock(self, which: int, skip: bool) -> None:
        blocked = self._blocked()
        if not blocked:
            return
        head = blocked[which % len(blocked)]
        self.run(self.queues[0].unblock(self.names[LINE][0], head.key, skip=skip))
        if skip:
            self.model.add_dead_letter(head)
        else:
            head.stage, head.failures, head.due = Stage.WAITING, 0, self.model.now

    def _blocked(self) -> list[Copy]:
        return [line[0] for line in self.model.mailboxes().values() if line[0].stage is Stage.BLOCKED]

    def pause(self, name: str) -> None:
        self.run(self.queues[1].pause(self.names[name][-1]))
        self.model.paused.add(name)

    def resume(self, name: str) -> None:
        self.run(self.queues[0].resume(self.names[name][0]))
        self.model.paused.remove(name)

    def end_a_dead_letter(self, which: int, discard: bool) -> None:
        if not self.model.dead:
            self.fail(which, 0, Outcome.DEAD, 0.0)
        letters = self._dead_letters()
        if not letters:
            return
        index = which % len(letters)
        copy = self.model.dead[index]
        if discard:
            ended = self.run(self.queues[0].discard_dead([letters[index].id]))
            self.model.discard_dead(copy)
        else:
            ended = self.run(self.queues[0].retry_dead([letters[index].id]))
            self.model.retry_dead(copy)
        check(true=ended == 1, otherwise=f"dead letter {letters[index]} did not end")

    def _dead_letters(self) -> list[DeadLetter]:
        present = {names[-1]: name for name, names in self.names.items()}
        letters = [
            replace(it, subscription=present.get(it.subscription, f"formerly {it.subscription}"))
            for it in self.run(self.queues[1].dead_letters(limit=1000))
        ]
        same = len(letters) == len(self.model.dead) and all(
            copy.matches_dead(letter) for copy, letter in zip(self.model.dead, letters, strict=False)
        )
        check(true=same, otherwise=f"{letters} are not {self.model.dead}")
        return letters

    def _compare_counts(self) -> None:
        kept = {it.name: it for it in self.run(self.queues[0].stats())}
        present = {names[-1]: name for name, names in self.names.items()}
        check(true=kept.keys() == present.keys(), otherwise=f"kept are {list(kept)} instead of {list(present)}")
        for stats in kept.values():
            name = present[stats.name]
            told, true = counts_of(stats), self.model.counts(name)
            if name == LINE:
                # A delivery that became due in a blocked or parked mailbox may count as ready until the next fetch.
                told, true = (_held_as_ready(it) for it in (told, true))
            check(true=told == true, otherwise=f"{name}: {told} instead of {true}")

    def teardown(self) -> None:
        try:
            if not self.failed:
                with self._reporting_failures():
                    self._finish_everything()
        finally:
            self.run(self.context.__aexit__(None, None, None))
            self.runner.close()
            shutil.rmtree(self.folder)

    def _finish_everything(self) -> None:
        """Resume, unblock and recover everything; check that every copy is delivered, in order, and nothing else."""
        self._dead_letters()
        for name in sorted(self.model.paused):
            self.resume(name)
        while self._blocked():
            self.unblock(0, skip=False)
        self.close(0)
        self.close(1)
        self.recover(0)
        self.unpark()
        for _ in range(2):
            self.advance(5.0)
        for name in (PLAIN, LINE):
            while self.model.claimable(name):
                self.fetch(0, name, 100)
                for held in [it for it in self.held if it.worker is self.workers[0]]:
                    self._settle(held, [Outcome.DONE] * len(held.copies), 0.0)
            wants = {self._asked(0, name): 100}
            check(true=self.run(self.workers[0].fetch(wants, wait=0)) == [], otherwise="unexpected claims")
        left = [it for it in self.model.copies if it.stage not in {Stage.DEAD, Stage.ENDED}]
        check(true=not left, otherwise=f"{left} never came")
        self._compare_counts()


def fenced_by(claim: Claim, name: str) -> tuple[str, int | str]:
    """Return the model's key for the fences of a claim: of its mailbox, or of its delivery."""
    return name, claim.ordering_key or "" if claim.ordered else claim.deliveries[0].id


def _held_as_ready(counts: dict[str, int]) -> dict[str, int]:
    return counts | {"ready": counts["ready"] + counts["parked"] + counts["blocked"], "parked": 0, "blocked": 0}
