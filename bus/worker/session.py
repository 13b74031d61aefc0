"""The session of a worker: its work under one lease, from the first claim to the last settlement."""

import asyncio
import math
from collections.abc import Callable
from functools import partial

import structlog

from bus.metrics import BusMetrics
from bus.options import BusOptions
from bus.stopping import StopSequence
from bus.supervisor import SupervisedTask, Supervisor
from bus.worker.claim_limits import CLAIM_LIMITS
from bus.worker.deadlines import Deadlines
from bus.worker.executor import Executor, running_listener
from bus.worker.heartbeat import Heartbeat
from bus.worker.lane import Lane
from bus.worker.outcomes import release
from bus.worker.settler import Settler
from bus.worker.slot import Slot, SlotTask
from bus.worker.suspects import Suspects
from infra.clock import Clock
from infra.failures import describe
from infra.mq import Claim, Consumer, QueueClosed, QueueError, Settlement

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FETCH_WAIT = 5.0
"""How long, in seconds, one fetch waits for due deliveries."""

CANCEL_TIMEOUT = 2.0
"""How long, in seconds, a shutdown waits for a cancelled handler."""

SUSPENDED_STEP = 0.1
"""Seconds between two checks whether an expired lease has been renewed."""


class Session:
    """Claims, runs and settles deliveries under one lease."""

    def __init__(
        self,
        consumer: Consumer,
        lanes: dict[str, Lane],
        executor: Executor,
        clock: Clock,
        options: BusOptions,
        metrics: BusMetrics,
        supervisor: Supervisor,
        on_progress: Callable[[], object] = lambda: None,
    ) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._executor = executor
        self._clock = clock
        self._options = options
        self._metrics = metrics
        self._supervisor = supervisor
        self._on_progress = on_progress
        self._settler = Settler(consumer, clock, metrics, self._fenced)
        self._suspects = Suspects(
            consumer,
            lanes,
            self._settler.add,
            wait_until_idle=self._wait_until_idle,
            run_alone=self._run_alone,
            is_stopping=self._is_stopping,
        )
        self._slot_health = supervisor.health("handlers")
        self._tasks: dict[str, SupervisedTask] = {}
        self._task: asyncio.Task[object] | None = None
        self._cancelled_before = 0
        self._left_behind: list[Slot] = []
        self._crashed: list[Claim] = []
        self._stopping = asyncio.Event()
        self._capacity = asyncio.Event()
        self._idle = asyncio.Event()
        """Cleared by a task that waits until no handler runs."""

        self._idle.set()
        self._ended = asyncio.Event()
        self._fetching = False
        self._fetched = asyncio.Event()
        self._known = {name: lane.listener.known for name, lane in lanes.items()}

    async def run(self) -> None:
        """Work until cancelled, then shut down gracefully; return when the lease is lost.

        Every claim is settled, released, or left to `recover`, however often the session is cancelled, and also if all
        tasks of the event loop are cancelled.
        """
        self._task = asyncio.current_task()
        self._cancelled_before = self._task.cancelling() if self._task is not None else 0
        heartbeat = Heartbeat(self._consumer, self._options, self._metrics, running_listener, self._ended.set)
        failure: BaseException | None = None
        try:
            heartbeat.start()
            timeouts = [
                timeout for each in self._lanes.values() if (timeout := each.listener.options.timeout) is not None
            ]
            for name, work in (
                ("fetch", self._fetch_until_stopped),
                ("settle", self._settler.run),
                ("deadlines", Deadlines(self._clock, timeouts, self._running).sweep),
                ("recover", self._recover),
                ("lease", self._watch_lease),
            ):
                self._tasks[name] = self._supervisor.start(name, work)
            await self._ended.wait()
            log.error("lease lost", worker=self._consumer.info.id, running=len(self._running()))
        except BaseException as error:  # noqa: BLE001 - usually a cancellation; raised again after the shutdown
            failure = error
        stop = StopSequence(self._clock)
        await self._stop(stop)
        await self._settle_all(stop)
        heartbeat.stop()
        for task in self._tasks.values():
            await stop.through(task.stop)
        await self._leave(stop)
        if (failure := failure or stop.cancelled) is not None:
            raise failure

    # --- fetching ---------------------------------------------------------------------------------------------------

    async def _fetch_until_stopped(self) -> None:
        while not self._is_stopping():
            if self._suspects:
                await self._suspects.run()
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
            except QueueError:
                self._metrics.queue_errors += 1
                raise
            finally:
                self._fetching = False
                self._fetched.set()
            self._tasks["fetch"].succeeded()
            self._on_progress()
            for claim in claims:
                self._accept(claim)

    def _wants(self) -> dict[str, int]:
        self._capacity.clear()
        # At most one half of the prefetch at a time: the queue claims it while handlers run the other half.
        prefetch = self._options.prefetch
        shared = min(prefetch - sum(len(lane.waiting) for lane in self._lanes.values()), (prefetch + 1) // 2)
        wants: dict[str, int] = {}
        for name, lane in self._lanes.items():
            want = lane.want(shared)
            if want:
                wants[name] = want
                shared -= max(0, want - max(0, lane.free))
        return wants

    def _accept(self, claim: Claim) -> None:
        lane = self._lanes.get(claim.subscription)
        first = claim.deliveries[0]
        if lane is None or self._stopping.is_set() or self._consumer.lost:
            self._settler.add(release(claim, first))
            return
        if first.takeovers >= CLAIM_LIMITS.suspect_after and not first.crashes >= self._options.max_crashes:
            self._suspects.add(claim)
            return
        lane.waiting.append(claim)
        # One slot runs claim after claim while handlers do not wait; otherwise it opens slots for the others.
        if not lane.opening and len(lane.slots) < lane.capacity and self._may_begin():
            self._open_slot(lane)

    # --- running ----------------------------------------------------------------------------------------------------

    def _open_slot(self, lane: Lane) -> None:
        slot = Slot(lane.listener, self._is_ending, lane.slots)
        slot.on_waiting = partial(self._open_slots, lane)
        lane.slots.add(slot)
        lane.opening.add(slot)
        lane.metrics.running += 1
        slot.task = SlotTask(slot, self._work(lane, slot))
        slot.task.add_done_callback(partial(self._slot_ended, lane, slot))

    def _open_slots(self, lane: Lane) -> None:
        """Open slots for the waiting claims, as many as may run at once."""
        for _ in range(min(len(lane.waiting) - len(lane.opening), lane.capacity - len(lane.slots))):
            if self._may_begin():
                self._open_slot(lane)

    async def _work(self, lane: Lane, slot: Slot) -> None:
        lane.opening.discard(slot)
        try:
            while self._may_begin() and not slot.stopping and (claim := lane.take()) is not None:
                await self._executor.run(slot, claim, lane.metrics, self._settler.add, self._may_begin)
                if slot.claim is not None or slot.exit is not None:
                    self._keep_claim(slot)
                    return
                lane.done_since_fetch += 1
                if lane.is_starved:
                    self._signal_capacity()
        finally:
            self._close_slot(lane, slot)

    def _keep_claim(self, slot: Slot) -> None:
        """Keep a claim whose thread still runs, or whose handler ends the process."""
        if slot.exit is None:
            self._left_behind.append(slot)
            return
        if slot.claim is not None:
            self._crashed.append(slot.claim)
        self._supervisor.end(slot.exit)

    def _slot_ended(self, lane: Lane, slot: Slot, task: asyncio.Task[None]) -> None:
        self._close_slot(lane, slot)  # a task that was cancelled before its first step has not closed its slot
        if task.cancelled():
            self._begin_waiting()
        elif (error := task.exception()) is not None:
            # `Executor.run` raises no handler's error: this is a defect of the bus.
            self._slot_health.failed(error)
            self._begin_waiting()

    def _close_slot(self, lane: Lane, slot: Slot) -> None:
        if slot not in lane.slots:
            return
        lane.slots.discard(slot)
        lane.opening.discard(slot)
        lane.metrics.running -= 1
        if lane.is_starved:
            self._signal_capacity()
        if not self._idle.is_set() and not self._running():
            self._idle.set()

    def _signal_capacity(self) -> None:
        self._capacity.set()
        if self._fetching:
            self._consumer.wake()

    async def _wait_until_idle(self, timeout: float) -> bool:
        """Release waiting claims, and wait for running handlers; return whether no handler runs within `timeout`."""
        for lane in self._lanes.values():
            while (claim := lane.take()) is not None:
                self._settler.add(release(claim, claim.deliveries[0]))
        if self._running():
            self._idle.clear()
            await self._clock.wait(self._idle, timeout)
        return not self._running() and not self._is_stopping()

    async def _run_alone(self, lane: Lane, claim: Claim) -> None:
        lane.waiting.appendleft(claim)
        self._idle.clear()
        self._open_slot(lane)
        await self._idle.wait()
        await self._settler.idle.wait()

    # --- the lease --------------------------------------------------------------------------------------------------

    def _is_stopping(self) -> bool:
        return self._stopping.is_set()

    def _is_ending(self) -> bool:
        """Whether the worker shuts down or is about to, so that cancellations of its handlers are part of that."""
        return self._stopping.is_set() or (self._task is not None and self._task.cancelling() > self._cancelled_before)

    def _may_begin(self) -> bool:
        # Without a lease, another worker may run the claims of this one.
        return (
            not self._is_ending() and not self._consumer.lost and self._clock.monotonic() < self._consumer.valid_until
        )

    async def _watch_lease(self) -> None:
        """Suspend work when the lease expires; resume it if the lease is renewed before a worker takes over."""
        suspended = False
        while (until := self._consumer.valid_until) < math.inf:
            left = until - self._clock.monotonic()
            if left > 0 and suspended:
                log.info("lease renewed", worker=self._consumer.info.id)
            elif left <= 0 and not suspended:
                self._suspend()
            suspended = left <= 0
            if not suspended:
                self._begin_waiting()
            await self._clock.sleep(SUSPENDED_STEP if suspended else left)

    def _suspend(self) -> None:
        """Cancel ordered handlers, which must not run beside another worker's; unordered ones may finish."""
        log.warning("lease expired", worker=self._consumer.info.id, running=len(self._running()))
        for slot in self._running():
            if slot.claim is None or not slot.claim.ordered:
                continue
            if slot.in_thread:
                log.error("ordered thread not cancelled", listener=slot.listener.name)
            else:
                slot.stop()

    def _begin_waiting(self) -> None:
        for lane in self._lanes.values():
            self._open_slots(lane)

    async def _recover(self) -> None:
        """Take over from dead workers, and unpark what this code can decode, until the lease is lost."""
        while not self._consumer.lost:
            try:
                if recovered := await self._consumer.recover():
                    self._metrics.takeovers += recovered
                    log.warning("claims taken over", deliveries=recovered)
                await self._consumer.unpark(self._known)
            except QueueClosed:
                break
            except QueueError:
                self._metrics.queue_errors += 1
                raise
            self._tasks["recover"].succeeded()
            await self._clock.sleep(self._options.recover_every)
        self._ended.set()

    def _fenced(self, settlement: Settlement) -> None:
        lane = self._lanes.get(settlement.claim.subscription)
        if lane is not None:
            lane.metrics.fenced += 1

    # --- shutdown ---------------------------------------------------------------------------------------------------

    async def _stop(self, stop: StopSequence) -> None:
        """Release waiting claims, let handlers finish within the grace period, and cancel those that remain."""
        self._stopping.set()
        self._capacity.set()
        self._consumer.wake()
        self._release_waiting()
        if not self._ended.is_set():
            await self._wait_for_slots(stop, self._options.grace)
        for slot in self._running():
            slot.stop()
        await self._wait_for_slots(stop, CANCEL_TIMEOUT)
        if (fetching := self._tasks.get("fetch")) is not None:
            if self._fetching:
                self._fetched.clear()
                await stop.wait(self._fetched, CANCEL_TIMEOUT)  # `wake` above ends the fetch
            await stop.through(fetching.stop)
        self._release_waiting()

    def _release_waiting(self) -> None:
        for lane in self._lanes.values():
            while (claim := lane.take()) is not None:
                self._settler.add(release(claim, claim.deliveries[0]))
        self._suspects.release_all()

    async def _wait_for_slots(self, stop: StopSequence, seconds: float) -> None:
        if self._running():
            self._idle.clear()
            await stop.wait(self._idle, seconds)

    def _running(self) -> list[Slot]:
        return [slot for lane in self._lanes.values() for slot in lane.slots]

    async def _settle_all(self, stop: StopSequence) -> None:
        """Wait within the grace period until everything is settled; a further cancellation shortens the wait."""
        settling = self._tasks.get("settle")
        if settling is not None and settling.running:
            await stop.wait(self._settler.idle, self._options.grace)
        if not self._settler.idle.is_set():
            # The settler was cancelled too, or has not finished in time: settle once more, for a short time.
            if settling is not None:
                await stop.through(settling.stop)
            draining = asyncio.ensure_future(self._settler.drain())
            await stop.wait_for_end(draining, CANCEL_TIMEOUT)
            draining.cancel()
            await stop.wait_for_end(draining, CANCEL_TIMEOUT)
        if not self._settler.idle.is_set():
            log.error("deliveries left unsettled", worker=self._consumer.info.id)

    async def _leave(self, stop: StopSequence) -> None:
        left_behind = [*self._running(), *self._left_behind]
        for slot in left_behind:
            log.error("handler left behind", listener=slot.listener.name)
            if slot.claim is not None:
                self._consumer.keep(slot.claim)
        if self._crashed and not left_behind:
            self._consumer.abandon()  # as after a kill: `recover` counts a crash for each claim that is still owned
        else:
            for claim in self._crashed:
                self._consumer.keep(claim)
        try:
            await stop.through(self._consumer.close)
        except Exception as error:  # noqa: BLE001 - after any error other workers take over the claims
            log.warning("consumer close failed", worker=self._consumer.info.id, error=describe(error))
