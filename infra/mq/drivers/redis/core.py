"""The state that all parts of one `RedisQueue` share."""

import secrets
from dataclasses import dataclass

from infra.clock import Clock
from infra.mq.clock_offset import ClockOffset
from infra.mq.defaults import BROADCAST_KEPT
from infra.mq.drivers.redis.address import RedisAddress
from infra.mq.drivers.redis.keys import Keys
from infra.mq.drivers.redis.link import Link
from infra.mq.drivers.redis.registry import RegistryClient
from infra.mq.drivers.redis.scripts import scripts
from infra.mq.drivers.redis.wire import Serials, microseconds
from infra.mq.errors import QueueUnavailable
from infra.mq.leases import RENEWED_WITHIN, TAKEOVER_MARGIN
from infra.mq.owner import QueueOwner

OUTDATED = -1
"""The answer of a script to a request that was made with an outdated copy of the registry."""

LARGEST_BODY = 511 * 1024 * 1024
"""The largest body, in bytes, on a server that does not tell its limit for values."""

BESIDE_BODY = 64 * 1024
"""The largest size, in bytes, of a stored message or dead letter without its body."""

MEASURED_FOR = 60.0
"""Seconds between two comparisons of the server's clock with this machine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions:
    """The options of a `RedisQueue`, which describes them; times are in seconds."""

    lease: float
    dedupe_window: float
    takeover_patience: float | None
    broker_time: bool
    timeout: float
    connect_timeout: float
    poll: float
    max_body: int | None
    broadcast_kept: float = BROADCAST_KEPT
    max_broadcasts: int = 4096

    @property
    def margin(self) -> float:
        """Seconds after the expiry of a lease before other workers take over."""
        return self.lease * TAKEOVER_MARGIN

    @property
    def renewed_within(self) -> float:
        """Seconds within which a live worker renews its lease."""
        return self.lease * RENEWED_WITHIN

    @property
    def patience(self) -> float:
        """Seconds for which a worker must have held its lease before it takes over from other workers."""
        return self.lease if self.takeover_patience is None else self.takeover_patience


class Core:
    """The server's address and clock, the names of its keys, the links to it, and the registry."""

    def __init__(self, url: str, clock: Clock, namespace: str, options: RedisOptions) -> None:
        self.address = RedisAddress.parse(url)
        self.keys = Keys(namespace)
        self.clock = clock
        self.options = options
        self.serials = Serials()
        self.process = secrets.token_hex(8)
        self.links: dict[str, Link] = {}
        self.registry = RegistryClient(lambda: self.link("admin"), self.keys, self.now)
        self.owner = QueueOwner()
        self.run_id = ""
        """The run id of the server at `open`; another one means that the server was restarted or replaced."""

        self.max_body = options.max_body or LARGEST_BODY
        self._offset = ClockOffset()
        self._measured_at: float | None = None
        # Fixed at the start, so that setting this machine's clock later changes no due time.
        self._began = clock.time() - clock.monotonic()

    def link(self, purpose: str) -> Link:
        """Return the link for a purpose. Each has its own, so that a long answer does not delay other requests."""
        self.owner.check()
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
        """Set `max_body` from the server's limit for values, in bytes; None if the server does not tell it."""
        limit = min(largest_value or LARGEST_BODY, LARGEST_BODY + BESIDE_BODY) - BESIDE_BODY
        self.max_body = min(limit, self.options.max_body or limit)

    @property
    def is_open(self) -> bool:
        """Whether the queue is open in the running event loop; raises WrongEventLoop if it is open in another."""
        return self.owner.is_here()

    def now(self) -> str:
        """Return the time for scripts: empty, for the server's clock, or with `broker_time=False` that of `clock`."""
        return "" if self.options.broker_time else str(microseconds(self.clock.time()))

    def time(self) -> float:
        """Return the estimated time of the server's clock; setting this machine's clock does not change it.

        Raises:
            QueueUnavailable: this process has never read the server's clock.
        """
        if not self.options.broker_time:
            return self.clock.time()
        if self._measured_at is None:
            raise QueueUnavailable(f"Redis at {self.address.where} has not been reached, so its time is unknown")
        return self._steady() + self._offset.seconds

    async def measure(self, link: Link) -> None:
        """Compare the server's clock with this machine's, unless that was done in the last `MEASURED_FOR` seconds."""
        if not self.options.broker_time:
            return
        now = self.clock.monotonic()
        if self._measured_at is not None and now - self._measured_at < MEASURED_FOR:
            return
        asked_at = self._steady()
        answer = await link.run_repeatable(scripts().now, [self.keys.of("meta")])
        self._offset.learn(asked_at, int(answer) / 1e6, self._steady())
        self._measured_at = now

    def _steady(self) -> float:
        return self._began + self.clock.monotonic()
