"""Errors that the organization service raises."""


class OrganizationError(Exception):
    """Base of this service's errors."""


class OrganizationNotFound(OrganizationError):
    """The organization does not exist, or the caller is not a member; the error does not reveal which."""


class OrganizationChanged(OrganizationError):
    """The organization is no longer at the version that the caller expects."""


class NotAllowed(OrganizationError):
    """The caller's role in the organization is too low for this."""


class MemberNotFound(OrganizationError):
    """The user is not a member of the organization."""


class AlreadyMember(OrganizationError):
    """The user is a member of the organization already."""


class LastOwner(OrganizationError):
    """The organization would be left without an owner."""


class AlreadyInvited(OrganizationError):
    """An invite to that email is still open."""


class TooManyInvites(OrganizationError):
    """The inviter has reached the limit of invites per hour, or of open invites."""

    def __init__(self, message: str, retry_after: float) -> None:
        """`retry_after` is the number of seconds until the next invite is allowed."""
        super().__init__(message)
        self.retry_after = retry_after


class InviteNotFound(OrganizationError):
    """The invite does not exist, is not visible to the caller, or is no longer open."""
