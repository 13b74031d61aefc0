"""Rate limits per client address."""

from collections import OrderedDict
from typing import Final

import structlog
from fastapi import Request

from beneath.http.core.addresses import client_key
from beneath.http.core.problems import TOO_MANY_REQUESTS, ProblemError, retry_after
from infra.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ADDRESSES: Final = 10_000
"""Addresses that one limit remembers at most; the least recently used is removed first."""

HOUR: Final = 3600.0

LOG_EVERY: Final = 60.0
"""Seconds between two log lines about one limit, for all addresses together."""


class AddressLimit:
    """A token bucket per client address in this process: `count` uses at once, refilled within `seconds`.

    All addresses of one 64-bit IPv6 network share a bucket. Processes count separately: with N processes behind a proxy
    a client has up to N times the limit.
    """

    def __init__(self, clock: Clock, what: str, count: int, seconds: float) -> None:
        self._clock = clock
        self._what = what
        self._count = count
        self._pause = seconds / count
        self._log_from = 0.0
        self._buckets: OrderedDict[str, float] = OrderedDict()
        """Monotonic time at which each bucket is full again; full buckets have no entry."""

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str) -> float:
        """Count one use by `address` and return 0, or return the seconds to wait if its bucket is empty."""
        key, now = client_key(address), self._clock.monotonic()
        full_at = max(now, self._buckets.pop(key, now))
        wait = full_at + self._pause - now - self._pause * self._count
        if wait <= 0:
            self._buckets[key] = full_at + self._pause
            if len(self._buckets) > ADDRESSES:
                self._buckets.popitem(last=False)
            return 0.0
        self._buckets[key] = full_at
        if now >= self._log_from:
            self._log_from = now + LOG_EVERY
            log.warning("rate limit reached", what=self._what, address=key)
        return wait

    def spend(self, request: Request) -> None:
        """Count one use by the request's client; raise `ProblemError` with `Retry-After` if its bucket is empty."""
        if wait := self.take(address_of(request)):
            detail = f"too many {self._what} came from your address; try again in {wait:.0f} s"
            raise ProblemError(TOO_MANY_REQUESTS, detail, retry_after(wait))


def address_of(request: Request) -> str:
    """Return the client's address, from a trusted proxy's header if there is one; "" for a Unix socket."""
    return request.client.host if request.client else ""
