"""The fixtures of the end-to-end tests."""

from tests.e2e.conftest import installation, pair, processes

__all__ = ["installation", "pair", "processes"]
