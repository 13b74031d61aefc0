"""Tables and events of organizations, members and invites."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from sqlalchemy import Enum, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, new_id


class Role(StrEnum):
    """The role of a member; each role includes the permissions of the one before it."""

    MEMBER = "member"
    """Read everything of the organization; create and change projects."""

    ADMIN = "admin"
    """Also invite and remove members, delete projects, rename the organization."""

    OWNER = "owner"
    """Also change roles. An organization always has at least one owner."""

    def covers(self, other: "Role") -> bool:
        """Return whether this role includes the permissions of `other`."""
        return _RANK[self] >= _RANK[other]

    def invites_to(self, role: "Role") -> bool:
        """Return whether this role may invite to `role`: admins and owners may, to roles up to their own."""
        return self.covers(Role.ADMIN) and self.covers(role)


_RANK = {role: rank for rank, role in enumerate(Role)}


class InviteStatus(StrEnum):
    """The status of an invite. Only a pending one can be accepted."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


def _stored(kind: type[StrEnum]) -> Enum:
    """Return a column type that stores values as short text: readable in SQL, and a new value needs no migration."""
    return Enum(
        kind, native_enum=False, create_constraint=False, length=20, values_callable=lambda it: [m.value for m in it]
    )


class Organization(Base):
    """A group of users that owns projects; `personal` is true for one that was created at a user's sign-up."""

    __tablename__ = "organizations"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    personal: Mapped[bool] = mapped_column(default=False)
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class Member(Base):
    """A user's membership in an organization."""

    __tablename__ = "members"
    __table_args__ = (Index(None, "user_id", "organization_id"),)

    organization_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), primary_key=True)
    role: Mapped[Role] = mapped_column(_stored(Role))
    joined_at: Mapped[datetime]


class Invite(Base):
    """An offer of membership to the owner of an email address.

    The token that accepts it is only in the mail. `token_hash` is its hash, None until the first mail is written.
    """

    __tablename__ = "invites"
    __table_args__ = (
        Index(None, "organization_id", "id"),
        Index(None, "organization_id", "email"),
        Index(None, "invited_by", "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organization_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"))
    email: Mapped[str] = mapped_column(String(254))
    role: Mapped[Role] = mapped_column(_stored(Role))
    status: Mapped[InviteStatus] = mapped_column(_stored(InviteStatus), default=InviteStatus.PENDING)
    token_hash: Mapped[str | None] = mapped_column(String(64), unique=True)
    expiry_id: Mapped[str] = mapped_column(String(100))
    """Id of the scheduled `InviteDeadlineReached`, by which it is cancelled."""
    invited_by: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationScoped:
    """Base class of the events that are ordered by their organization."""

    ordering_scope: ClassVar[str] = "organization"

    organization_id: UUID

    def ordering_key(self) -> str:
        return str(self.organization_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationCreated(OrganizationScoped):
    """An organization exists, and `actor_id` owns it."""

    actor_id: UUID
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationUpdated(OrganizationScoped):
    """An organization was renamed."""

    actor_id: UUID
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInvited(OrganizationScoped):
    """Someone is invited; the mail is still to be sent."""

    actor_id: UUID
    invite_id: UUID
    email: str
    organization_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteDeadlineReached:
    """An invite's time is up, should it be open still: scheduled with the invite, cancelled when that is closed."""

    invite_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteExpired(OrganizationScoped):
    """An invite was not accepted in time."""

    invite_id: UUID
    email: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteWithdrawn(OrganizationScoped):
    """An open invite was withdrawn by `actor_id`, also by removing or demoting its inviter."""

    actor_id: UUID
    invite_id: UUID
    email: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberJoined(OrganizationScoped):
    """A user accepted an invite."""

    actor_id: UUID
    invite_id: UUID
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberUpdated(OrganizationScoped):
    """A member's role changed."""

    actor_id: UUID
    user_id: UUID
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLeft(OrganizationScoped):
    """A member left, or was removed by `actor_id`."""

    actor_id: UUID
    user_id: UUID
