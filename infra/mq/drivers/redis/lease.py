"""A worker's lease in the server, renewed from a thread over a connection of its own."""

import contextlib
import threading
from typing import Any

from redis import exceptions as redis_errors

from infra.mq.drivers.redis.core import Core
from infra.mq.drivers.redis.errors import explain
from infra.mq.drivers.redis.keys import WAITING
from infra.mq.drivers.redis.scripts import Script, scripts
from infra.mq.drivers.redis.wire import microseconds
from infra.mq.errors import QueueUnavailable
from infra.mq.leases import RENEW_EVERY

TIMEOUT = 2.0
"""Seconds that the server may take to answer a renewal; a third of the lease, if that is less."""


class Lease:
    """A worker's right to its claims; usable from any thread.

    An expired lease is not lost until another worker has taken over, which only the server knows.
    """

    def __init__(self, core: Core, worker: str, *, joined: float) -> None:
        self._core = core
        self._worker = worker
        self._lock = threading.Lock()
        self._connection: Any = None
        self._lost = False
        self._held_since = joined
        self.valid_until = joined + core.options.lease
        """Monotonic time at which the lease expires: never later than on the server if both clocks run alike."""

    @property
    def lost(self) -> bool:
        """Whether the lease is lost or abandoned, as far as this process knows."""
        return self._lost

    @property
    def held_for(self) -> float:
        """Seconds for which the worker has held the lease and reached the server without a break."""
        return self._core.clock.monotonic() - self._held_since

    def interrupted(self) -> None:
        """Restart `held_for`, because the server was unreachable, perhaps for all workers."""
        self._held_since = self._core.clock.monotonic()

    def mark_lost(self) -> None:
        """Mark the lease as lost in this process, without telling the server."""
        self._lost = True

    def renew(self) -> bool:
        """Renew the lease; return False if it is lost.

        Raises:
            QueueUnavailable: the server is unreachable.
        """
        with self._lock:
            if self._lost:
                return False
            asked = self._core.clock.monotonic()
            options = self._core.options
            times = (microseconds(options.lease), microseconds(options.renewed_within))
            try:
                held = self._run(scripts().renew, ["leases", "meta", "since"], self._core.now(), self._worker, *times)
            except QueueUnavailable:
                self.interrupted()
                raise
            if held:
                self.valid_until = asked + options.lease
            else:
                self._lost = True
            return not self._lost

    def abandon(self) -> None:
        """End the lease in this process and, if the server is reachable now, for all workers."""
        self._lost = True
        with self._lock, contextlib.suppress(QueueUnavailable):
            self._run(scripts().abandon, ["leases", WAITING], self._worker)

    def keep_alive(self) -> None:
        """Renew the lease in a thread until it is lost or the process ends, for a handler that does not stop."""

        def beat() -> None:
            pause = threading.Event()
            while not self.lost:
                pause.wait(self._core.options.lease * RENEW_EVERY)
                with contextlib.suppress(QueueUnavailable):
                    self.renew()
            self.close()

        threading.Thread(target=beat, name="redis lease", daemon=True).start()

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            self._disconnect()

    def _run(self, script: Script, names: list[str], *arguments: Any) -> Any:  # noqa: ANN401 - the client's type
        where = self._core.address.where
        asked = (len(names), *(self._core.keys.of(it) for it in names), *arguments)
        try:
            if self._connection is None:
                name = f"{self._core.keys.namespace}-lease"
                timeout = min(TIMEOUT, self._core.options.lease / 3)
                self._connection = self._core.address.blocking_connection(name, timeout=timeout)
            self._connection.send_command("EVALSHA", script.sha, *asked, check_health=False)
            try:
                return self._connection.read_response()
            except redis_errors.NoScriptError:
                self._connection.send_command("EVAL", script.source, *asked, check_health=False)
                return self._connection.read_response()
        except (redis_errors.RedisError, OSError) as error:
            self._disconnect()
            raise QueueUnavailable(str(explain(error, where))) from error

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
