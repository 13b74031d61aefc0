"""Fixtures of the contract tests: each driver, its harness and an open queue."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.clock import FakeClock
from infra.mq import MessageQueue
from tests.contract.budget import register
from tests.contract.harness import DRIVERS, Harness, chosen_drivers


def pytest_configure(config: pytest.Config) -> None:
    register()
    config.addinivalue_line("markers", "requires(*features): only on drivers that have these features")


@pytest.fixture(params=chosen_drivers())
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    marker = request.node.get_closest_marker("requires")
    missing = [it for it in marker.args if not getattr(DRIVERS[name].features, it)] if marker else []
    if missing:
        pytest.skip(f"the {name} driver is not {', '.join(missing)}")
    return name


@pytest.fixture
async def harness(driver: str, tmp_path: Path) -> AsyncIterator[Harness]:
    async with DRIVERS[driver].open(tmp_path, FakeClock()) as opened:
        yield opened


@pytest.fixture
async def queue(harness: Harness) -> MessageQueue:
    return await harness.queue()
