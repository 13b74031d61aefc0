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
"""How long, in seconds, the server may take to answer a sign of life, if a lease is not so short that a third of it is
less."""


class Lease:
    """Whether a worker may still own anything; usable from any thread.

    One that ran out is not lost before somebody took over: whether that is so only the server knows.
    """

    def __init__(self, core: Core, worker: str, *, joined: float) -> None:
        self._core = core
        self._worker = worker
        self._lock = threading.Lock()
        self._connection: Any = None
        self._gone = False
        self._held_since = joined
        self.valid_until = joined + core.options.lease
        """When it runs out, by this machine's clock: never later than by the server's, if they run equally fast."""

    @property
    def lost(self) -> bool:
        """Whether it is over."""
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
            if self._gone:
                return False
            asked = self._core.clock.monotonic()
            lease = microseconds(self._core.options.lease)
            try:
                held = self._run(scripts().renew, ["leases", "meta", "since"], self._core.now(), self._worker, lease)
            except QueueUnavailable:
                self.interrupted()
                raise
            if held:
                self.valid_until = asked + self._core.options.lease
            else:
                self._gone = True
            return not self._gone

    def abandon(self) -> None:
        """Give it up, here and, if that can be told now, for everybody."""
        self._gone = True
        with self._lock, contextlib.suppress(QueueUnavailable):
            self._run(scripts().abandon, ["leases", "sleepers"], self._worker)

    def keep_alive(self) -> None:
        """Keep it for as long as this process lives, for a handler that will not stop."""

        def beat() -> None:
            pause = threading.Event()
            while not self.lost:
                pause.wait(self._core.options.lease / 3)
                with contextlib.suppress(QueueUnavailable):
                    self.renew()
            self.close()

        threading.Thread(target=beat, name="redis lease", daemon=True).start()

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            self._disconnect()

    def _run(self, script: Script, names: list[str], *arguments: Any) -> Any:  # noqa: ANN401 - the client's own
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
