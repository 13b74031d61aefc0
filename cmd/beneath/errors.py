"""Errors of the executable."""

from dependencies.errors import SetupError


class UsageError(SetupError):
    """An argument or option of a command is invalid or names something that does not exist."""


class StartError(SetupError):
    """A part cannot start with these settings on this machine."""
