"""The queue's time is the server's, reckoned by this machine's monotonic clock."""

import time
from typing import Any, cast

import pytest

from infra.clock import FakeClock, SystemClock
from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.postgres.clock import ServerClock


class Server:
    """A server with a clock of its own."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead
        self._start = time.time() - time.monotonic()

    async def fetchval(self, _: str) -> float:
        return self._start + time.monotonic() + self.ahead


async def compared(clock: ServerClock, server: Server) -> float:
    """Return how far the queue's time is ahead of the server's, once it was compared."""
    await clock.compare(cast("Driver", server))
    return clock.time() - await server.fetchval("")


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_a_step_of_this_machines_clock_moves_no_due_time(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    clock, server = ServerClock(SystemClock()), Server(ahead=25.0)
    assert abs(await compared(clock, server)) < 1
    honest = time.time
    monkeypatch.setattr(time, "time", lambda: honest() + step)
    assert abs(clock.time() - await server.fetchval("")) < 1
    assert abs(await compared(clock, server)) < 1


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_every_process_follows_the_servers_clock(step: float) -> None:
    clock, server = ServerClock(SystemClock()), Server(ahead=0.0)
    await compared(clock, server)
    server.ahead += step
    assert abs(await compared(clock, server)) < 1


async def test_a_clock_of_a_test_is_the_time_itself() -> None:
    fake = FakeClock()
    clock = ServerClock(fake)
    server: Any = Server(ahead=25.0)
    await clock.compare(server)
    assert clock.time() == fake.time()
