"""The fixtures of the tests of commands."""

from tests.cli.conftest import beneath, folder, settings

__all__ = ["beneath", "folder", "settings"]
