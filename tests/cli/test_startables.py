"""Startables: their selection by name, ports and processes."""

from contextlib import ExitStack

import pytest

from beneath.application import Application
from beneath.errors import StartError, UsageError
from beneath.runtime.processes import WorkerPool
from beneath.startables import STARTABLES, BuildContext, Launch, built, select
from beneath.startables.control_worker import build_control_worker
from dependencies import Container, Settings
from dependencies.settings import WorkerSettings


def test_all_selects_every_startable_once() -> None:
    assert {"control-server", "control-worker"} <= {each.name for each in STARTABLES}
    assert select(["all"]) == list(STARTABLES)
    assert select(["control-worker", "all", "control-worker"]) == list(STARTABLES)
    assert [each.name for each in select(["control-worker"])] == ["control-worker"]


@pytest.mark.parametrize(
    ("name", "guess"), [("contrl-server", "control-server"), ("worker", "control-worker"), ("al", "all")]
)
def test_unknown_startable_is_refused_with_the_nearest_name(name: str, guess: str) -> None:
    with pytest.raises(UsageError, match=rf"^there is no startable '{name}'; did you mean {guess}\?"):
        select([name])


def processes(settings: Settings, number: int, port: int = 4001) -> Application:
    worker = WorkerSettings(processes=number, port=port)
    return Application(Container(settings=settings.model_copy(update={"worker": worker})))


def test_several_processes_get_successive_ports_and_the_settings_of_the_parent(settings: Settings) -> None:
    launch = Launch(options=("--config", "x.yaml", "--set", "log.level=debug"))
    with built(select(["control-worker"]), processes(settings, 3), launch) as (pool, *_):
        assert isinstance(pool, WorkerPool)
        commands = [each._arguments for each in pool._workers]
    assert [command[:4] for command in commands] == [launch.options] * 3
    assert [command[command.index("start") - 1] for command in commands] == [
        f"worker.port={port}" for port in (4001, 4002, 4003)
    ]
    assert all("worker.processes=1" in command for command in commands)
    assert all(command[-2:] == ("start", "control-worker") for command in commands)


def test_port_numbers_out_of_range_are_refused(settings: Settings) -> None:
    with ExitStack() as cleanup:
        context = BuildContext(processes(settings, 3, 65_534), cleanup, ["control-worker"], Launch())
        with pytest.raises(StartError, match=r"^worker\.port: 3 processes from 65534 on need ports above 65535; lower"):
            build_control_worker(context)
