"""Comparison of every driver with the model while requests, answers and connections fail."""

from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.contract.budget import search
from tests.contract.harness import DRIVERS, chosen_drivers
from tests.contract.proxied import PROXIED
from tests.contract.unsteady_machine import unsteady_machine_of


@pytest.mark.parametrize("times", [1, pytest.param(8, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", chosen_drivers())
@pytest.mark.timeout(1200)
def test_driver_matches_the_model_despite_failing_requests(name: str, times: int, tmp_path: Path) -> None:
    driver = DRIVERS[name]
    machine = unsteady_machine_of(name, driver, tmp_path)
    # Broken connections take real time: eight times as many examples would take a quarter of an hour.
    examples = 3 * min(times, 3) if name in PROXIED else times * (6 if driver.features.durable else 40)
    run_state_machine_as_test(machine, settings=search(examples, shrink=name not in PROXIED))
