"""The fixtures of the HTTP tests."""

from tests.http.conftest import api, busy_timeout, options

__all__ = ["api", "busy_timeout", "options"]
