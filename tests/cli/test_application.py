"""The complete application, run in this process."""

import asyncio
import os
import signal
import sys
from contextlib import suppress

import httpx2
import pytest
from dependency_injector import providers

from beneath.application import Application
from beneath.commands.reporting import report
from beneath.errors import StartError, UsageError
from beneath.failing import failing_tasks
from beneath.runtime.lifecycle import ExitRequested
from beneath.runtime.server import bind
from beneath.startables import Launch
from bus import BackgroundTaskFailed
from dependencies import Container, Settings
from dependencies.settings import ControlSettings
from infra.clock import SystemClock
from infra.db import DatabaseError, MigrationPending
from infra.mq.drivers.memory import MemoryQueue
from models.user import UserCreated
from tests.cli.conftest import sign_up


class SilentQueue(MemoryQueue):
    """A queue that waits for ever in `open`, as with a silent server."""

    def __init__(self) -> None:
        super().__init__(clock=SystemClock())
        self.asked = asyncio.Event()

    async def open(self) -> None:
        self.asked.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_during_the_start_shuts_down_at_once_and_cleanly(
    settings: Settings, number: signal.Signals
) -> None:
    container = Container(settings=settings)
    queue = SilentQueue()
    container.infra.mq.override(providers.Object(queue))
    application = Application(container)
    running = asyncio.create_task(application.run(["all"], Launch()))
    await queue.asked.wait()
    os.kill(os.getpid(), number)
    async with asyncio.timeout(10):
        await running
    assert running.cancelling() == 0
    assert application.stopping
    with pytest.raises(DatabaseError, match="not open"):
        _ = container.infra.db().dialect.writer


async def test_cancellation_during_the_start_without_a_signal_is_raised(settings: Settings) -> None:
    container = Container(settings=settings)
    queue = SilentQueue()
    container.infra.mq.override(providers.Object(queue))
    running = asyncio.create_task(Application(container).run(["all"], Launch()))
    await queue.asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def get(url: str) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        return await client.get(url)


def with_listener(settings: Settings) -> Container:
    """Return a container whose bus has the async listener `probe.record`."""
    container = Container(settings=settings)

    async def record(event: UserCreated) -> None: ...

    container.infra.bus().add_async_listener(record, name="probe.record")
    return container


async def test_health_and_metrics_of_server_and_worker_share_the_server_port(settings: Settings) -> None:
    async with Application(with_listener(settings)).running("all") as application:
        assert set(application.urls) == {"control-server"}
        url = application.urls["control-server"]
        assert (await get(f"{url}/healthz")).status_code == 200
        assert (await get(f"{url}/readyz")).json()["status"] == "ready"
        metrics = (await get(f"{url}/metrics")).text
        assert 'beneath_listener_handled_total{listener="probe.record"} 0.0' in metrics
        assert 'beneath_queue_deliveries{listener="probe.record",state="ready"} 0.0' in metrics
        assert "beneath_queue_up 1.0" in metrics
        assert "beneath_event_loop_lag_seconds" in metrics


async def test_single_worker_serves_its_own_health_and_metrics(settings: Settings) -> None:
    async with Application(with_listener(settings)).running("control-worker") as application:
        url = application.urls["control-worker"]
        assert (await get(f"{url}/healthz")).status_code == 200
        assert (await get(f"{url}/readyz")).status_code == 200
        assert "beneath_listener_handled_total" in (await get(f"{url}/metrics")).text
        assert (await get(f"{url}/v1/me")).status_code == 404


async def test_failing_background_task_shows_in_readiness_and_metrics_and_ends_the_process(settings: Settings) -> None:
    container = Container(settings=settings)
    failures = 0

    async def broken() -> None:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise ValueError("no")
        await asyncio.Event().wait()

    with pytest.raises(BackgroundTaskFailed, match="broken"):
        async with Application(container).running("control-server") as application, asyncio.timeout(10):
            url = application.urls["control-server"]
            assert (await get(f"{url}/readyz")).json()["checks"]["tasks"] == "ok"
            application.bus._supervisor.start("broken", broken)
            await asyncio.sleep(0)
            answer = await get(f"{url}/readyz")
            assert (answer.status_code, answer.json()["checks"]["tasks"]) == (503, "failed")
            metrics = (await get(f"{url}/metrics")).text
            assert 'beneath_bus_task_failing{task="broken"} 1.0' in metrics
            port = int(url.rpartition(":")[2])
            here = settings.model_copy(update={"control": ControlSettings(port=port)})
            [line] = await asyncio.to_thread(failing_tasks, here)
            assert line.startswith(f"the process at 127.0.0.1:{port}: its background task 'broken' failed 1 times")
            assert 'beneath_bus_task_failures_total{task="broken"} 1.0' in metrics
            application.bus._supervisor.max_failures = 1
            application.bus._supervisor.health("broken").failed(ValueError("again"))
            await asyncio.Event().wait()


async def test_exit_of_a_handler_ends_the_process_with_its_exit_code(settings: Settings) -> None:
    container = Container(settings=settings)

    async def leave(event: UserCreated) -> None:
        sys.exit(3)

    container.infra.bus().add_async_listener(leave, name="leave")
    with pytest.raises(ExitRequested) as raised:
        async with Application(container).running("all") as application, asyncio.timeout(20):
            await sign_up(application.urls["control-server"], "ada@example.com")
            await asyncio.Event().wait()
    assert report(raised.value) == 3


async def test_leaving_the_block_closes_everything(settings: Settings) -> None:
    container = Container(settings=settings)
    async with Application(container).running("all") as application:
        url = application.urls["control-server"]
    with pytest.raises(httpx2.ConnectError):
        await get(url)
    with pytest.raises(Exception, match=r"open|closed"):
        await container.infra.mq().stats()
    assert application.stopping


async def test_error_of_the_block_is_raised_unchanged(settings: Settings) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with Application(Container(settings=settings)).running("all"):
            raise LookupError("mine")


async def test_a_failing_part_ends_the_block_with_its_cause(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = Container(settings=settings)

    async def broken() -> None:
        raise OSError("the worker broke")

    monkeypatch.setattr(container.infra.bus(), "run", broken)
    with pytest.raises(OSError, match="the worker broke"):
        async with Application(container).running("all"), asyncio.timeout(10):
            await asyncio.Event().wait()


async def test_an_occupied_port_is_named_with_its_setting(settings: Settings) -> None:
    taken = bind("control", "127.0.0.1", 0)
    port = taken.getsockname()[1]
    settings = settings.model_copy(update={"control": ControlSettings(port=port)})
    expected = rf"^control\.port: 127\.0\.0\.1:{port} is already in use; .* BENEATH_CONTROL_PORT"
    with pytest.raises(StartError, match=expected):
        async with Application(Container(settings=settings)).running("control-server"):
            pass
    taken.close()


@pytest.mark.parametrize("host", ["nonsense.invalid", "203.0.113.7", "a" * 300])
def test_unavailable_host_address_is_named(host: str) -> None:
    with pytest.raises(StartError, match=r"^worker\.host"):
        bind("worker", host, 0)


async def test_unknown_startable_is_refused_before_anything_is_opened(settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"no startable 'contrl-server'; did you mean control-server\? \(there are: "):
        async with Application(Container(settings=settings)).running("contrl-server"):
            pass


@pytest.mark.parametrize("env", ["test", "production"])
async def test_outside_development_pending_migrations_are_refused(settings: Settings, env: str) -> None:
    container = Container(settings=settings.model_copy(update={"env": env}))
    with pytest.raises(MigrationPending, match="bus/0001"):
        async with Application(container).opened():
            pass


async def test_stop_before_the_start_runs_nothing(settings: Settings) -> None:
    application = Application(Container(settings=settings))
    application._lifecycle.stop()
    async with application.opened():
        await application._lifecycle.run([])
    with suppress(KeyError):
        assert application.urls["control-server"] == ""
