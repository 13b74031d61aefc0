"""One incarnation of a worker: from the lease that it took to the lease that it gave back, or lost."""

import asyncio
import math
from collections import deque
from collections.abc import Coroutine
from typing import Any

import structlog

from bus.handling import FOREVER, Handling, Slot, release, running_listener
from bus.heartbeat import Heartbeat
from bus.lane import Lane
from bus.metrics import BusMetrics
from bus.options import BusOptions
from bus.settler import Settler
from infra.clock import Clock
from infra.mq import Claim, Consumer, QueueClosed, QueueError, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FETCH_WAIT = 5.0
"""How long, in seconds, one fetch waits for something to do."""

STUBBORN = 2.0
"""How long, in seconds, a cancelled handler is waited for while stopping."""

ISOLATION_PATIENCE = 10.0
"""How long, in seconds, to wait for running handlers to end before a suspect is put off."""

SUSPENDED_STEP = 0.1
"""Seconds between two looks whether a lease that ran out was renewed after all."""

SUSPECT_AFTER = 2
"""Takeovers from which on a delivery runs alone."""


class Session:
    """Fetches, runs and settles under one lease."""

    def __init__(
        self,
        consumer: Consumer,
        lanes: dict[str, Lane],
        handling: Handling,
        clock: Clock,
        options: BusOptions,
        metrics: BusMetrics,
    ) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._handling = handling
        self._clock = clock
        self._options = options
        self._metrics = metrics
        self._settler = Settler(consumer, clock, metrics, self._fenced)
        self._suspects: deque[Claim] = deque()
        self._left_behind: list[Slot] = []
        self._stopping = asyncio.Event()
        self._capacity = asyncio.Event()
        self._quiet = asyncio.Event()
        self._ended = asyncio.Event()
        self._bug: BaseException | None = None
        self._fetching = False
        self._tasks: list[asyncio.Task[None]] = []
        self._known = {name: lane.listener.events for name, lane in lanes.items()}

    async def run(self) -> None:
        """Work until cancelled, then stop gracefully; return when the lease is lost."""
        heartbeat = Heartbeat(self._consumer, self._options, self._metrics, running_listener, self._ended.set)
        heartbeat.start()
        fetching = self._start(self._fetch_until_stopped(), "bus fetch")
        settling = self._start(self._settler.run(), "bus settle")
        self._start(self._sweep_deadlines(), "bus deadlines")
        self._start(self._look_after_others(), "bus recovery")
        self._start(self._mind_the_lease(), "bus lease")
        try:
            await self._ended.wait()
            if self._bug is not None:
                raise self._bug
            log.error("the worker's lease is lost: what it held goes to others")
        finally:
            try:
                await self._stop(fetching)
            finally:
                heartbeat.stop()
                await _cancel([task for task in self._tasks if task is not settling])
                await self._leave(settling)

    # --- fetching ---------------------------------------------------------------------------------------------------

    async def _fetch_until_stopped(self) -> None:
        backoff = 0.05
        while not self._is_stopping():
            if self._suspects:
                await self._run_suspects()
                continue
            wants = self._wants()
            if not wants:
                await self._capacity.wait()
                continue
            try:
                self._fetching = True
                claims = await self._consumer.fetch(wants, wait=FETCH_WAIT)
            except QueueClosed:
                self._ended.set()
                return
            except QueueError as error:
                self._metrics.queue_errors += 1
                log.warning("nothing can be fetched", error=str(error), retry_in=round(backoff, 2))
                await self._clock.wait(self._stopping, backoff)
                backoff = min(backoff * 2, 5.0)
                continue
            finally:
                self._fetching = False
            backoff = 0.05
            for claim in claims:
                self._accept(claim)

    def _wants(self) -> dict[str, int]:
        self._capacity.clear()
        shared = self._options.prefetch - sum(len(lane.waiting) for lane in self._lanes.values())
        wants: dict[str, int] = {}
        for name, lane in self._lanes.items():
            want = lane.want(shared)
            lane.starved = want == 0
            if want:
                wants[name] = want
                shared -= max(0, want - max(0, lane.free))
                lane.done_since_fetch = 0
        return wants

    def _accept(self, claim: Claim) -> None:
        if self._stopping.is_set() or self._consumer.lost:
            self._settler.add(release(claim, claim.deliveries[0]))
            return
        lane = self._lanes[claim.subscription]
        first = claim.deliveries[0]
        if first.takeovers >= SUSPECT_AFTER and not first.crashes >= self._options.max_crashes:
            self._suspects.append(claim)
            return
        lane.waiting.append(claim)
        if len(lane.slots) < lane.listener.concurrency and self._may_begin():
            self._open_slot(lane)

    # --- running ----------------------------------------------------------------------------------------------------

    def _open_slot(self, lane: Lane) -> None:
        slot = Slot(lane.listener)
        lane.slots.add(slot)
        lane.metrics.running += 1
        slot.task = asyncio.create_task(self._work(lane, slot))
        slot.task.add_done_callback(self._notice_bug)

    async def _work(self, lane: Lane, slot: Slot) -> None:
        try:
            while self._may_begin() and not slot.stopping and (claim := lane.take()) is not None:
                await self._handling.run(slot, claim, lane.metrics, self._settler.add, self._may_begin)
                lane.done_since_fetch += 1
                if lane.starved and len(lane.waiting) * 2 <= lane.listener.concurrency:
                    self._make_room()
        except asyncio.CancelledError:
            # Only the session cancels slots, and only to end them: what this one held is released by `Handling.run`.
            if not slot.stopping:
                raise
            if slot.in_thread:
                self._left_behind.append(slot)
        finally:
            self._close_slot(lane, slot)

    def _close_slot(self, lane: Lane, slot: Slot) -> None:
        lane.slots.discard(slot)
        lane.metrics.running -= 1
        if lane.starved:
            self._make_room()
        if not any(each.slots for each in self._lanes.values()):
            self._quiet.set()

    def _make_room(self) -> None:
        self._capacity.set()
        if self._fetching:
            self._consumer.wake()

    # --- suspects ---------------------------------------------------------------------------------------------------

    async def _run_suspects(self) -> None:
        """Run what several workers died with, one at a time and with nothing beside it: only the guilty is charged."""
        if not await self._all_quiet():
            while self._suspects:
                claim = self._suspects.popleft()
                self._settler.add(release(claim, claim.deliveries[0], ISOLATION_PATIENCE * 3))
            return
        while self._suspects and not self._is_stopping():
            claim = self._suspects.popleft()
            lane = self._lanes[claim.subscription]
            try:
                alone = await self._consumer.isolate(claim)
            except QueueError as error:
                log.warning("a suspect could not be isolated", error=str(error))
                self._settler.add(release(claim, claim.deliveries[0], 1.0))
                continue
            if alone:
                lane.waiting.appendleft(claim)
                self._quiet.clear()
                self._open_slot(lane)
                await self._quiet.wait()
                await self._settler.idle.wait()

    async def _all_quiet(self) -> bool:
        """Wait, for a while, until nothing runs or waits to run here."""
        for lane in self._lanes.values():
            while (claim := lane.take()) is not None:
                self._settler.add(release(claim, claim.deliveries[0]))
        if any(lane.slots for lane in self._lanes.values()):
            self._quiet.clear()
            await self._clock.wait(self._quiet, ISOLATION_PATIENCE)
        return not any(lane.slots for lane in self._lanes.values()) and not self._is_stopping()

    # --- looking after things ---------------------------------------------------------------------------------------

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._notice_bug)
        self._tasks.append(task)
        return task

    def _notice_bug(self, task: asyncio.Task[None]) -> None:
        # Tasks here handle what may go wrong outside; what escapes them is a bug, and must not leave half a worker.
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = self._bug or error
            self._ended.set()

    def _is_stopping(self) -> bool:
        return self._stopping.is_set()

    def _may_begin(self) -> bool:
        # Without a lease, what is still held here may be run by others: not a handler more may begin.
        return (
            not self._stopping.is_set()
            and not self._consumer.lost
            and self._clock.monotonic() < self._consumer.valid_until
        )

    async def _mind_the_lease(self) -> None:
        """Suspend work when the lease runs out, and go on if it turns out that nobody has taken over."""
        suspended = False
        while (until := self._consumer.valid_until) < math.inf:
            left = until - self._clock.monotonic()
            if left > 0 and suspended:
                log.info("the worker's lease holds again, and nobody had taken over: it goes on")
            elif left <= 0 and not suspended:
                self._suspend()
            suspended = left <= 0
            if not suspended:
                self._begin_waiting()
            await self._clock.sleep(SUSPENDED_STEP if suspended else left)

    def _suspend(self) -> None:
        """End what must not run beside a successor's; what is unordered may: at worst, it is handled twice."""
        log.warning("the worker's lease ran out: nothing more begins, and ordered handlers end, until it is renewed")
        for slot in self._running():
            if slot.claim is None or not slot.claim.ordered or slot.task is None:
                continue
            if slot.in_thread:
                log.error("a thread cannot be stopped: its key may get another owner", listener=slot.listener.name)
            else:
                slot.stopping = True
                slot.task.cancel()

    def _begin_waiting(self) -> None:
        for lane in self._lanes.values():
            for _ in range(min(len(lane.waiting), lane.listener.concurrency - len(lane.slots))):
                self._open_slot(lane)

    async def _sweep_deadlines(self) -> None:
        """Interrupt handlers whose time is up: one look at what runs, instead of a timer for every message."""
        timeouts = [lane.listener.timeout for lane in self._lanes.values() if lane.listener.timeout is not None]
        if not timeouts:
            return
        step = min(max(min(timeouts) / 4, 0.01), 1.0)
        while True:
            await self._clock.sleep(step)
            now = self._clock.monotonic()
            for slot in [slot for lane in self._lanes.values() for slot in lane.slots]:
                if slot.deadline <= now:
                    slot.interrupt()
                elif slot.timed_out and slot.deadline is FOREVER:
                    self._complain(slot, now)

    def _complain(self, slot: Slot, now: float) -> None:
        timeout = slot.listener.timeout or 0.0
        if not slot.complained and now - slot.started > timeout + max(timeout, 1.0):
            slot.complained = True
            log.error(
                "a handler ignores its timeout and goes on; its delivery stays with it until it ends",
                listener=slot.listener.name,
                seconds=round(now - slot.started, 1),
            )

    async def _look_after_others(self) -> None:
        while True:
            try:
                if recovered := await self._consumer.recover():
                    self._metrics.takeovers += recovered
                    log.warning("took over from dead workers", deliveries=recovered)
                await self._consumer.unpark(self._known)
            except QueueClosed:
                self._ended.set()
                return
            except QueueError as error:
                self._metrics.queue_errors += 1
                log.warning("dead workers cannot be looked for", error=str(error))
            if self._consumer.lost:
                self._ended.set()
                return
            await self._clock.sleep(self._options.recover_every)

    def _fenced(self, settlement: Settlement) -> None:
        lane = self._lanes.get(settlement.claim.subscription)
        if lane is not None:
            lane.metrics.fenced += 1

    # --- stopping ---------------------------------------------------------------------------------------------------

    async def _stop(self, fetching: asyncio.Task[None]) -> None:
        """Let running handlers finish within the grace period, release what has not begun, cancel the rest."""
        self._stopping.set()
        self._capacity.set()
        self._consumer.wake()
        self._release_waiting()
        try:
            if not self._ended.is_set():
                await self._wait_for_slots(self._options.grace)
        finally:
            for slot in self._running():
                slot.stopping = True
                if slot.task is not None:
                    slot.task.cancel()
            await self._wait_for_slots(STUBBORN)
            # Never cancelled: what it is just claiming would be owned by nobody. It was woken, so it ends.
            await asyncio.wait([fetching])

    def _release_waiting(self) -> None:
        for lane in self._lanes.values():
            while (claim := lane.take()) is not None:
                self._settler.add(release(claim, claim.deliveries[0]))
        while self._suspects:
            claim = self._suspects.popleft()
            self._settler.add(release(claim, claim.deliveries[0]))

    async def _wait_for_slots(self, seconds: float) -> None:
        if self._running():
            self._quiet.clear()
            await self._clock.wait(self._quiet, seconds)

    def _running(self) -> list[Slot]:
        return [slot for lane in self._lanes.values() for slot in lane.slots]

    async def _leave(self, settling: asyncio.Task[None]) -> None:
        for slot in [*self._running(), *self._left_behind]:
            log.error("a handler does not stop; it is left behind", listener=slot.listener.name)
            if slot.claim is not None:
                self._consumer.keep(slot.claim)
        if not settling.done() and not await self._clock.wait(self._settler.idle, self._options.grace):
            log.error("some deliveries could not be settled: they will be handled again")
        await _cancel([settling])
        try:
            await self._consumer.close()
        except QueueError as error:
            log.warning("the worker could not sign off; others take over from it", error=str(error))


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
