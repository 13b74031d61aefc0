"""Comparison of every driver with the model over random steps.

`pytest tests/contract/test_model.py --hypothesis-profile=thorough` searches longer, with other examples in each run.
"""

from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.contract.budget import search
from tests.contract.harness import DRIVERS, chosen_drivers
from tests.contract.whole_machine import machine_of


@pytest.mark.parametrize("times", [1, pytest.param(8, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", chosen_drivers())
@pytest.mark.timeout(1200)
def test_driver_matches_the_model(name: str, times: int, tmp_path: Path) -> None:
    driver = DRIVERS[name]
    examples = times * (5 if driver.features.durable else 40)
    run_state_machine_as_test(machine_of(driver, tmp_path), settings=search(examples))
