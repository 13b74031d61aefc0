"""What can be wrong with a call to the user service."""


class UserError(Exception):
    """Base of this service's errors."""


class EmailTaken(UserError):
    """Another user has this email."""


class UserNotFound(UserError):
    """There is no such user."""


class UserChanged(UserError):
    """The user is no longer at the version that the caller had seen."""
