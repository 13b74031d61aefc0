"""The state machine with all steps: also waiting and cancelled fetches, renames and retirements."""

import asyncio
from pathlib import Path

from infra.mq import BacklogPolicy, Claim, ListenerInUse, Outcome, Settlement
from tests.contract.acting import EVENT, declare, message, subscription, until_done
from tests.contract.harness import Driver
from tests.contract.machine import Mismatch, QueueMachine, check
from tests.contract.model import LINE, Copy

WAIT = 3.0
"""The wait of a fetch in seconds."""


class WholeMachine(QueueMachine):
    """A machine with all steps."""

    notified = True
    """Whether what is published reaches a fetch that waits at once."""

    def __init__(self) -> None:
        super().__init__()
        self.renames = 0

    def wait(self, which: int, name: str, limit: int, end: str) -> None:
        """Fetch with a wait, which a publish of the other queue, `wake()`, or the time ends."""
        if name in self.model.paused:
            self.resume(name)
        self.fetch(which, name, 100)  # Otherwise the waiting fetch would claim due deliveries at once.
        if self.model.claimable(name):
            return  # The fetch failed, and its claims were released.
        claims, possible = self.run(self._wait(which, name, limit, end))
        enough = bool(claims) or not possible or end == "wake" or not self.notified
        check(true=enough and len(claims) <= limit, otherwise=f"a waiting fetch returned {claims} of {possible}")
        for claim in claims:
            self._take(self.workers[which], claim, name, possible)

    async def _wait(self, which: int, name: str, limit: int, end: str) -> tuple[list[Claim], list[list[Copy]]]:
        worker = self.workers[which]
        fetching = asyncio.ensure_future(worker.fetch({self._asked(which, name): limit}, wait=WAIT))
        await self.clock.settle(5)
        if not fetching.done():
            await asyncio.wait({fetching}, timeout=0.005)
        if end == "publish":
            await self._publish_one(1 - which, "ab"[limit % 2])
        elif end == "wake":
            worker.wake()
        claims = await until_done(self.harness, asyncio.wait_for(fetching, None), step=0.25)
        return claims, self._claimable_until_now(name)

    def _claimable_until_now(self, name: str) -> list[list[Copy]]:
        """Advance the model to the clock's time; return the claims that were possible at any time in between.

        The clock may advance past further due times before a busy machine returns the claims of a fetch.
        """
        possible, now = self.model.claimable(name), self.clock.time()
        for due in sorted({it.due for it in self.model.copies if self.model.now < it.due < now}):
            self.model.advance(due)
            possible += self.model.claimable(name)
        self._pass_time()
        return possible + self.model.claimable(name)

    async def _publish_one(self, queue: int, key: str) -> None:
        message_id = f"m{len(self.published)}"
        self.published.append(message_id)
        await self.queues[queue].publish([message(message_id, key=key, dedupe=True)])
        self.model.publish(message_id, key, None)

    def _pass_time(self) -> None:
        self.model.advance(self.clock.time())
        for worker in self.workers:
            check(true=worker.renew(), otherwise="a live worker lost its lease")

    def cancel_a_fetch(self, which: int, name: str, key: str, pause: int) -> None:
        """Cancel a fetch during a publish for it; the close of its worker releases its claims."""
        self.run(self._cancel_a_fetch(which, name, key, pause))
        self._pass_time()
        self.close(which)

    async def _cancel_a_fetch(self, which: int, name: str, key: str, pause: int) -> None:
        fetching = asyncio.ensure_future(self.workers[which].fetch({self._asked(which, name): 2}, wait=WAIT))
        publishing = asyncio.ensure_future(self._publish_one(1 - which, key))
        await self.clock.settle(pause)
        fetching.cancel()
        await until_done(self.harness, _ended(fetching), step=0.25)
        await publishing

    def rename(self, name: str, queue: int) -> None:
        """Rename a subscription; its backlog moves along, and its former names stay valid."""
        names = self.names[name]
        self.renames += 1
        wanted = subscription(f"{name}-{self.renames}", ordered=name == LINE, aliases=tuple(names))
        self.run(declare(self.harness, self.queues[queue], wanted))
        names.append(wanted.name)
        self._pass_time()

    def retire_the_event(self, name: str) -> None:
        """Retire the event of a subscription with its backlog, some of it claimed; then declare the event again."""
        self.recover(0)
        owned = [it for it in self.held if it.name == name and self._owned(it)]
        retired = self.run(self.queues[0].retire(self.names[name][-1], event=EVENT, backlog="discard"))
        expected = self.model.forget(name)
        check(true=retired == expected, otherwise=f"retired {retired} deliveries of {name} instead of {expected}")
        for held in owned:
            # Its deliveries are deleted, but the worker owns the mailbox until it releases it.
            last = held.claim.deliveries[-1]
            ends = [Settlement(claim=held.claim, delivery=last, outcome=Outcome.RETRY, close=held.claim.ordered)]
            check(true=self.run(held.worker.settle(ends)) == ends, otherwise=f"{held.claim} outlived its event")
        self.held = [it for it in self.held if it.name != name]
        self.run(declare(self.harness, self.queues[1], subscription(self.names[name][-1], ordered=name == LINE)))
        self._pass_time()

    def retire(self, name: str, backlog: BacklogPolicy) -> None:
        """Retire a subscription; refused while a worker uses it, and with `refuse` while it has a backlog."""
        check(true=self.run(self._in_use(name, "discard")), otherwise=f"{name} was retired under its workers")
        self.recover(0)
        for worker in self.workers:
            self.run(worker.close())
            self.model.release([worker.info.id], dead=False)
        self.held.clear()
        if backlog == "refuse" and self.model.waiting(name):
            check(true=self.run(self._in_use(name, backlog)), otherwise=f"{name} was retired with a backlog")
        else:
            self._retire(name, backlog)
        self.workers = [self.run(self._join(it)) for it in self.queues]

    def _retire(self, name: str, backlog: BacklogPolicy) -> None:
        gone = self.model.waiting(name)
        retired = self.run(self.queues[0].retire(self.names[name][-1], backlog=backlog))
        check(true=retired == len(gone), otherwise=f"retired {retired} deliveries of {name} instead of {len(gone)}")
        self.model.forget(name)
        if backlog == "dead":
            self._add_dead_letters_in_any_order(gone)
        self._discard_dead_letters(name)
        self.model.paused.discard(name)
        self.model.fences = {it: fence for it, fence in self.model.fences.items() if it[0] != name}
        self.names[name] = self.names[name][-1:]
        self.run(declare(self.harness, self.queues[1], subscription(self.names[name][0], ordered=name == LINE)))
        self.model.advance(self.clock.time())

    def _add_dead_letters_in_any_order(self, gone: list[Copy]) -> None:
        """Add the dead letters of one moment to the model in the queue's order, which the contract leaves open."""
        letters = self.run(self.queues[0].dead_letters(limit=1000))[len(self.model.dead) :]
        for letter in letters:
            copy = next((it for it in gone if it.message_id == letter.message_id), None)
            if copy is None:
                raise Mismatch(f"{letter} was not waiting")
            gone.remove(copy)
            self.model.add_dead_letter(copy)
        check(true=not gone, otherwise=f"no dead letters of {gone}")

    def _discard_dead_letters(self, name: str) -> None:
        """Discard a subscription's dead letters: the contract leaves open whether a later one of its name has them."""
        left = [it for it, copy in zip(self._dead_letters(), self.model.dead, strict=True) if copy.subscription == name]
        ended = self.run(self.queues[0].discard_dead([it.id for it in left]))
        check(true=ended == len(left), otherwise=f"{left} did not end")
        self.model.dead = [it for it in self.model.dead if it.subscription != name]

    async def _in_use(self, name: str, backlog: BacklogPolicy) -> bool:
        try:
            await self.queues[0].retire(self.names[name][-1], backlog=backlog)
        except ListenerInUse:
            return True
        return False


async def _ended(task: "asyncio.Future[list[Claim]]") -> None:
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # No caller waits for the exception.


def machine_of(tested: Driver, folder: Path) -> type[WholeMachine]:
    """Return the machine that works on this driver, each time on a new store in `folder`."""

    class Machine(WholeMachine):
        driver = tested
        stores = folder

    return Machine
