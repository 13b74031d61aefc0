"""What the executable refuses, and how any error is told to people."""

from dependencies.errors import SetupError


class UsageError(SetupError):
    """A command was given something that does not exist or does not fit."""


class StartError(SetupError):
    """A part cannot start here and now."""
