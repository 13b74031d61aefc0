"""What the composition root refuses, each in one line for people."""


class SetupError(Exception):
    """Base of every error that keeps the application from being put together; its text is one line."""


class SettingsError(SetupError):
    """A setting is unknown, has a wrong value, or its file cannot be read."""


class IncompleteContainer(SetupError):
    """A service that takes the bus is not in the container, so its listeners would never be registered."""
