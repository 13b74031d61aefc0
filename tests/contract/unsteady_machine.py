"""The state machine on an unreliable network: the queue must still agree with the model."""

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import rule

from infra.mq import MessageQueue
from tests.breakable_proxy import BreakableProxy
from tests.contract.harness import Driver, Harness
from tests.contract.machine import check
from tests.contract.proxied import PROXIED, Proxied
from tests.contract.steps import Step, steps
from tests.contract.unsteady import ClaimsUnknown, Fault, UnsteadyQueue, deliver
from tests.contract.whole_machine import WholeMachine

T = TypeVar("T")

CALL_FAULTS: tuple[Fault, ...] = ("lose", "late", "cancel")
CONNECTION_FAULTS = ("cut", "mute", "half", "late")


class UnsteadyMachine(WholeMachine):
    """A machine in which one request of most steps, or all connections, fail."""

    proxied: ClassVar[Proxied | None]

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.patience = 0
        self.late: list[Callable[[], Awaitable[object]]] = []
        self.proxy: BreakableProxy | None = None
        super().__init__()

    def open(self) -> AbstractAsyncContextManager[Harness]:
        if self.proxied is None:
            return super().open()
        port, harness = self.proxied(self.clock)
        self.proxy = BreakableProxy(port)
        return harness(self.proxy)

    async def new_queue(self) -> MessageQueue:
        return cast("MessageQueue", UnsteadyQueue(await super().new_queue(), self))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        result = super().run(work)
        if hasattr(self, "model"):
            self.model.advance(self.clock.time())  # Some drivers wait before they repeat a request.
        return result

    @rule(
        step=steps(),
        fault=st.sampled_from([None, *CALL_FAULTS, *CONNECTION_FAULTS]),
        patience=st.sampled_from([0, 1, 2, 4, 8, 30]),
        delivered=st.booleans(),
    )
    def do(self, step: Step, fault: str | None, patience: int, delivered: bool) -> None:
        name, values = step
        with self._reporting_failures():
            if name in FORGETTING:
                self._deliver_late()
            if name not in STEADY and (fault != "late" or name in LATE):
                self._inject(fault, patience)
            try:
                getattr(self, name)(**values)
            finally:
                self._end_faults()
            if delivered:
                self._deliver_late()
            self._compare_counts()

    def _inject(self, fault: str | None, patience: int) -> None:
        self.patience = patience
        if fault in CONNECTION_FAULTS and self.proxy is not None:
            self.proxy.fail_everywhere(fault)
            self.notified = False  # The notification connection breaks, too.
        elif fault in CALL_FAULTS:
            self.fault = fault

    def _end_faults(self) -> None:
        self.fault = None
        if self.proxy is None:
            return
        self.proxy.heal()
        if not self.notified:
            self.notified = True
            self._connect_again()

    def _connect_again(self) -> None:
        """Use every connection, so that later calls, some of which cannot be repeated, do not meet a broken one."""
        for queue in self.queues:
            self.run(queue.stats())
        for worker in self.workers:
            check(true=worker.renew(), otherwise="a live worker lost its lease")

    def _deliver_late(self) -> None:
        self.run(deliver(self))
        if self.proxy is not None:
            self.proxy.deliver_late()

    def fetch(self, which: int, name: str, limit: int) -> None:
        try:
            super().fetch(which, name, limit)
        except ClaimsUnknown:
            self._close_with_unknown_claims(which)

    def wait(self, which: int, name: str, limit: int, end: str) -> None:
        try:
            super().wait(which, name, limit, end)
        except ClaimsUnknown:
            self._close_with_unknown_claims(which)

    def _close_with_unknown_claims(self, which: int) -> None:
        """Close a worker that may own unknown claims, which releases them."""
        self._end_faults()
        self.close(which)

    def _finish_everything(self) -> None:
        self._end_faults()
        self._deliver_late()
        super()._finish_everything()


STEADY = frozenset({"advance", "close", "retire", "crash", "take_over", "poison", "cancel_a_fetch"})
"""Steps without faults: they renew leases or end a worker, where a fault may cause a takeover unknown to the model."""


FORGETTING = frozenset({"advance", "cancel", "reschedule"})
"""Steps after which the queue may have forgotten an id, so that a late publish of it would be a new message."""

LATE = frozenset({"publish", "publish_again", "fetch", "succeed", "fail", "settle_again", "isolate"})
"""Steps whose late requests have no effect; late requests of operators take effect."""


def unsteady_machine_of(name: str, tested: Driver, folder: Path) -> type[UnsteadyMachine]:
    """Return the machine that works on this driver, each time on a new store in `folder`."""

    class Machine(UnsteadyMachine):
        driver = tested
        stores = folder
        proxied = PROXIED.get(name)

    return Machine
