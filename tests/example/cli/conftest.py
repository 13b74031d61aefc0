"""The fixtures of the tests of commands."""

from tests.cli.conftest import beneath, folder, settings
from tests.cli.test_process import start

__all__ = ["beneath", "folder", "settings", "start"]
