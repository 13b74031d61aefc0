"""What all parts of one `RedisQueue` share."""

import secrets
from dataclasses import dataclass

from infra.clock import Clock
from infra.mq.clock_offset import ClockOffset
from infra.mq.drivers.redis.address import Address
from infra.mq.drivers.redis.keys import Keys
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.registry import Catalog, Route
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.wire import Serials, microseconds
from infra.mq.errors import QueueClosed, QueueUnavailable
from infra.ownership import LoopOwner

OUTDATED = -1
"""What a script answers to a copy of the registry that is not the present one."""

LARGEST_BODY = 511 * 1024 * 1024
"""How large a message's body may be, in bytes, where the server does not say how large a value may be."""

BESIDE_BODY = 64 * 1024
"""How much more than its body a stored message, or a dead letter, has at most, in bytes."""

MEASURED_FOR = 60.0
"""For how long, in seconds, the difference between the two clocks is taken for the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the driver works. Times are in seconds."""

    lease: float = 10.0
    dedupe_window: float = 120.0
    takeover_patience: float | None = None
    broker_time: bool = True
    timeout: float = 5.0
    connect_timeout: float = 5.0
    poll: float = 1.0
    max_body: int | None = None
    registry_ttl: float = 1.0
    broadcasts_kept: float = 60.0
    broadcasts_kept_at_most: int = 4096

    @property
    def margin(self) -> float:
        """For how long a lease must have run out before others take over.

        By then its worker has ended what must not run beside its successor, although its clock may be slower.
        """
        return self.lease * 0.2

    @property
    def patience(self) -> float:
        """How long a worker must have held its lease before it takes over from others."""
        return self.lease if self.takeover_patience is None else self.takeover_patience


class Core:
    """The server, the names of its keys, its clock, and this process's copy of the registry."""

    def __init__(self, url: str, clock: Clock, namespace: str, options: Options) -> None:
        self.address = Address.parse(url)
        self.keys = Keys(namespace)
        self.clock = clock
        self.options = options
        self.serials = Serials()
        self.process = secrets.token_hex(8)
        self.links: dict[str, Link] = {}
        self.catalog = Catalog(lambda: self.link("admin"), self.keys, self.now)
        self.owner = LoopOwner("the queue")
        self.incarnation = ""
        """Which server it was that the queue was opened on."""

        self.max_body = options.max_body or LARGEST_BODY
        self._offset = ClockOffset()
        self._measured_at: float | None = None
        # This machine's clock as it was at the start: nothing that sets it later changes any due time.
        self._began = clock.time() - clock.monotonic()

    def link(self, purpose: str) -> Link:
        """Return the connection for a purpose: one each, so that no long answer keeps others waiting."""
        if not self.is_open:
            raise QueueClosed("the queue is not open")
        link = self.links.get(purpose)
        if link is None:
            link = self.links[purpose] = Link(
                self.address,
                f"{self.keys.namespace}-{purpose}",
                timeout=self.options.timeout,
                connect_timeout=self.options.connect_timeout,
            )
        return link

    def limit_bodies(self, largest_value: int | None) -> None:
        """Take note of how large a value the server takes; a message has a little beside its body."""
        said = min(largest_value or LARGEST_BODY, LARGEST_BODY + BESIDE_BODY) - BESIDE_BODY
        self.max_body = min(said, self.options.max_body or said)

    @property
    def is_open(self) -> bool:
        """Whether the queue is open in the running event loop; raises WrongEventLoop if it is open in another."""
        return self.owner.is_here()

    def check(self) -> None:
        """Raise QueueClosed unless the queue is open."""
        if not self.owner.is_here():
            raise QueueClosed("the queue is not open")

    def now(self) -> str:
        """Return what scripts take for the time: nothing, for they ask the broker; in tests the clock's."""
        return "" if self.options.broker_time else str(microseconds(self.clock.time()))

    def time(self) -> float:
        """Return the time of the server's clock as estimated here; a step of this machine's clock does not move it.

        Raises:
            QueueUnavailable: this process has never read the server's clock.
        """
        if not self.options.broker_time:
            return self.clock.time()
        if self._measured_at is None:
            raise QueueUnavailable(f"Redis at {self.address.where} has not been reached, so its time is unknown")
        return self._steady() + self._offset.seconds

    async def measure(self, link: Link) -> None:
        """Compare the clocks, if that is due."""
        if not self.options.broker_time:
            return
        now = self.clock.monotonic()
        if self._measured_at is not None and now - self._measured_at < MEASURED_FOR:
            return
        asked_at = self._steady()
        answer = await link.safely(scripts().now, [self.keys.of("meta")])
        self._offset.learn(asked_at, int(answer) / 1e6, self._steady())
        self._measured_at = now

    def _steady(self) -> float:
        return self._began + self.clock.monotonic()


def ordered_flags(routes: list[Route]) -> list[bool]:
    """Return for each subscription whether it is ordered."""
    return [it.kept.ordered for it in routes]
