"""The fixtures of the HTTP tests."""

from tests.http.conftest import api, options

__all__ = ["api", "options"]
