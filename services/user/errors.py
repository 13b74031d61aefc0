"""Errors that the user service raises."""


class UserError(Exception):
    """Base of this service's errors."""


class EmailTaken(UserError):
    """Another user has this email."""


class UserNotFound(UserError):
    """The user does not exist."""


class UserChanged(UserError):
    """The user is no longer at the version that the caller expects."""
