"""Registers the profiles of Hypothesis."""

from tests.contract.budget import register


def pytest_configure() -> None:
    register()
