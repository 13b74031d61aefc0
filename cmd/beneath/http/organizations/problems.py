"""The problems of the organization service's errors."""

from collections.abc import Mapping
from typing import Final

from beneath.http.core.problems import CHANGED, INVALID, NOT_ALLOWED, NOT_FOUND, TOO_MANY_REQUESTS, ProblemType
from models.email import InvalidEmail
from models.name import InvalidName
from services.organization.errors import (
    AlreadyInvited,
    AlreadyMember,
    InviteNotFound,
    LastOwner,
    MemberNotFound,
    NotAllowed,
    OrganizationChanged,
    OrganizationNotFound,
    TooManyInvites,
)

ALREADY_MEMBER = ProblemType("already-member", 409, "The user is a member already")
ALREADY_INVITED = ProblemType("already-invited", 409, "An invite is open already")
LAST_OWNER = ProblemType("last-owner", 409, "An organization needs an owner")

PROBLEMS: Final[Mapping[type[Exception], ProblemType]] = {
    AlreadyInvited: ALREADY_INVITED,
    AlreadyMember: ALREADY_MEMBER,
    InvalidEmail: INVALID,
    InvalidName: INVALID,
    InviteNotFound: NOT_FOUND,
    LastOwner: LAST_OWNER,
    MemberNotFound: NOT_FOUND,
    NotAllowed: NOT_ALLOWED,
    OrganizationChanged: CHANGED,
    OrganizationNotFound: NOT_FOUND,
    TooManyInvites: TOO_MANY_REQUESTS,
}
