"""The fixtures of the service tests."""

from tests.services.conftest import domain

__all__ = ["domain"]
