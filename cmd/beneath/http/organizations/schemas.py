"""The bodies of organizations, their members and invites."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from beneath.http.core.schemas import Body, Matching, Shown
from beneath.http.fields import Email, Name
from models.organization import InviteStatus, Role

Token = Annotated[str, Matching(r"^[A-Za-z0-9_-]{1,200}$", "expected the token from the mail")]


class NewOrganization(Body):
    """An organization to create; you become its owner."""

    name: Name = Field(examples=["Analytical Engines"])


class OrganizationChange(Body):
    """A change of an organization's name."""

    name: Name


class OrganizationOut(Shown):
    """An organization of which you are a member; `personal` is true for the one created at your sign-up."""

    id: UUID
    name: str
    personal: bool
    created_at: datetime
    updated_at: datetime


class MemberOut(Shown):
    """A member of an organization."""

    user_id: UUID
    email: str
    name: str
    role: Role
    joined_at: datetime


class RoleChange(Body):
    """A change of a member's role."""

    role: Annotated[Role, Field(strict=False)]


class NewInvite(Body):
    """An invite to create; its mail contains the token that accepts it."""

    email: Email
    role: Annotated[Role, Field(strict=False)] = Role.MEMBER


class InviteOut(Shown):
    """An invite to an organization."""

    id: UUID
    email: str
    role: Role
    status: InviteStatus
    created_at: datetime
    expires_at: datetime


class Acceptance(Body):
    """The token from an invite's mail."""

    token: Token
