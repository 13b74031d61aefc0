"""A worker's lease, kept from a thread of its own."""

import contextlib
import threading
from typing import Any

from redis import exceptions as redis_errors

from infra.mq.drivers.redis.core import Core
from infra.mq.drivers.redis.errors import explain
from infra.mq.drivers.redis.scripts import Script, scripts
from infra.mq.drivers.redis.wire import microseconds
from infra.mq.errors import QueueUnavailable

TIMEOUT = 2.0
"""How long, in seconds, the server may take to answer a sign of life."""


class Lease:
    """Whether a worker may still own anything; usable from any thread.

    A lease that is not renewed for its time is lost. As long as the server cannot be reached at all, nobody can have
    taken over, or learned that others are dead: then the worker goes on for `Options.outage` seconds more.
    """

    def __init__(self, core: Core, worker: str, *, joined: float) -> None:
        self._core = core
        self._worker = worker
        self._lock = threading.Lock()
        self._connection: Any = None
        self._gone = False
        self._renewed = joined
        self._over_at = joined + core.options.lease
        self._held_since = joined

    @property
    def lost(self) -> bool:
        """Whether it is over; asked for every message, so it only compares."""
        if not self._gone and self._core.clock.monotonic() >= self._over_at:
            self._gone = True
        return self._gone

    @property
    def held_for(self) -> float:
        """For how many seconds it has been held, and the server reachable, without a break."""
        return self._core.clock.monotonic() - self._held_since

    def interrupted(self) -> None:
        """Notice that the server could not be reached: until it is heard again, others could not reach it either."""
        self._held_since = self._core.clock.monotonic()

    def drop(self) -> None:
        """Count it as lost, here."""
        self._gone = True

    def renew(self) -> bool:
        """Extend it; False when it is lost.

        Raises:
            QueueUnavailable: the server could not be asked.
        """
        with self._lock:
            if self.lost:
                return False
            asked = self._core.clock.monotonic()
            lease = microseconds(self._core.options.lease)
            try:
                held = self._run(scripts().renew, self._core.now(), self._worker, lease)
            except QueueUnavailable:
                self._hope()
                self.interrupted()
                raise
            if held:
                self._renewed = asked
                self._over_at = asked + self._core.options.lease
            else:
                self._gone = True
            return not self._gone

    def abandon(self) -> None:
        """Give it up, here and, if that can be told now, for everybody."""
        self._gone = True
        with self._lock, contextlib.suppress(QueueUnavailable):
            self._run(scripts().abandon, self._worker)

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            self._disconnect()

    def _hope(self) -> None:
        """Go on for a while: nobody else can have been told anything by a server that does not answer."""
        options = self._core.options
        latest = self._renewed + options.lease + options.outage
        self._over_at = min(self._core.clock.monotonic() + options.lease, latest)

    def _run(self, script: Script, *arguments: Any) -> Any:  # noqa: ANN401 - the client's own
        where = self._core.address.where
        leases = self._core.keys.of("leases")
        try:
            if self._connection is None:
                name = f"{self._core.keys.namespace}-lease"
                self._connection = self._core.address.blocking_connection(name, timeout=TIMEOUT)
            self._connection.send_command("EVALSHA", script.sha, 1, leases, *arguments, check_health=False)
            try:
                return self._connection.read_response()
            except redis_errors.NoScriptError:
                self._connection.send_command("EVAL", script.source, 1, leases, *arguments, check_health=False)
                return self._connection.read_response()
        except (redis_errors.RedisError, OSError) as error:
            self._disconnect()
            raise QueueUnavailable(str(explain(error, where))) from error

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
