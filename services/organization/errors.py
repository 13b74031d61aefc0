"""Errors that the organization service raises."""


class OrganizationError(Exception):
    """Base of this service's errors."""


class OrganizationNotFound(OrganizationError):
    """There is no such organization, or the caller is not in it; the error does not tell which."""


class OrganizationChanged(OrganizationError):
    """The organization is no longer at the version that the caller had seen."""


class NotAllowed(OrganizationError):
    """The caller's role in the organization is too low for this."""


class MemberNotFound(OrganizationError):
    """That user is not in the organization."""


class AlreadyMember(OrganizationError):
    """That person is in the organization already."""


class LastOwner(OrganizationError):
    """The organization would be left without an owner."""


class AlreadyInvited(OrganizationError):
    """An invite to that email is still open."""


class TooManyInvites(OrganizationError):
    """The inviter has made, or keeps open, as many invites as one user may."""

    def __init__(self, message: str, retry_after: float) -> None:
        """Take the seconds after which one more may be made."""
        super().__init__(message)
        self.retry_after = retry_after


class InviteNotFound(OrganizationError):
    """There is no such invite where the caller may look, or it is no longer open."""
