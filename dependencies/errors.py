"""Errors of settings and of the container; each text is one line."""


class SetupError(Exception):
    """Base of all errors of settings, container and usage, for which the command line exits with code 2."""


class SettingsError(SetupError):
    """A setting is unknown or invalid, or its file cannot be read."""


class IncompleteContainer(SetupError):
    """A service that takes the bus is not in the container, so its listeners would never be registered."""
