"""The organization service: organizations, their members, and invites.

An invite is closed once: the transaction that finds its row pending, and holds the lock on it, changes the status and
publishes the event for it (`MemberJoined`, `InviteWithdrawn` or `InviteExpired`). The scheduled `InviteDeadlineReached`
only starts a check of the row. One that fires late, twice or after an acceptance changes nothing; if the queue loses
one, `expires_at` still ends the invite. Cancelling it saves the check, and nothing depends on that.

An invite is valid while its inviter's role allows it. The transaction that removes or demotes the inviter withdraws it,
and an acceptance checks the role again, under the same lock on the organization.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from bus import Bus
from infra.clock import Clock
from infra.db import Database
from models.base import new_id, utc
from models.email import normalise_email
from models.name import MAX_LENGTH, normalise_name
from models.organization import (
    Invite,
    InviteDeadlineReached,
    InviteStatus,
    Member,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    Organization,
    OrganizationCreated,
    OrganizationUpdated,
    Role,
)
from models.user import User, UserCreated
from services.organization.access import find_member, is_member, lock_organization, require_other_owner, require_role
from services.organization.errors import (
    AlreadyMember,
    InviteNotFound,
    NotAllowed,
    OrganizationChanged,
    OrganizationNotFound,
)
from services.organization.invites import (
    expiry_of,
    find_by_token,
    find_open,
    find_pending,
    find_unbacked,
    invitation_of,
    is_backed,
    organization_of,
    replace_token,
    require_uninvited,
    require_within_limits,
    withdrawal_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """A member, with what the members of an organization may know of each other."""

    user_id: UUID
    email: str
    name: str
    role: Role
    joined_at: datetime


class OrganizationService:
    """Owns organizations, members and invites, and checks roles in them."""

    def __init__(self, bus: Bus, db: Database, clock: Clock, *, invite_lifetime: float, max_invites: int) -> None:
        """`invite_lifetime` is in seconds; `max_invites` is the limit of one user's invites per hour."""
        self._bus = bus
        self._db = db
        self._clock = clock
        self._invite_lifetime = invite_lifetime
        self._max_invites = max_invites
        bus.add_sync_listener(self.create_personal)
        bus.add_async_listener(self.expire_invite)

    async def create_personal(self, event: UserCreated) -> None:
        """Create a personal organization for a new user, in the same transaction."""
        name = f"{event.name}'s organization"[:MAX_LENGTH].rstrip()  # a name must not end with a space
        await self._create(event.user_id, name, personal=True)

    async def create(self, actor_id: UUID, name: str) -> Organization:
        """Create an organization that the actor owns; raise `InvalidName`."""
        return await self._create(actor_id, normalise_name(name), personal=False)

    async def require(
        self, session: AsyncSession, user_id: UUID, organization_id: UUID, role: Role = Role.MEMBER
    ) -> None:
        """Return if the user has `role` or a higher one in the organization.

        Raises:
            OrganizationNotFound: the organization does not exist, or the user is not a member.
            NotAllowed: the user's role is too low.
        """
        await require_role(session, user_id, organization_id, role)

    async def get(self, actor_id: UUID, organization_id: UUID) -> Organization:
        """Return an organization of which the actor is a member; raise `OrganizationNotFound`."""
        query = _organizations_of(actor_id).where(Organization.id == organization_id)
        async with self._db.read() as session:
            organization = await session.scalar(query)
        if organization is None:
            raise OrganizationNotFound(str(organization_id))
        return organization

    async def list_organizations(
        self, actor_id: UUID, *, after: UUID | None = None, limit: int = 100
    ) -> Sequence[Organization]:
        """Return the actor's organizations after the id `after`, oldest first."""
        query = _organizations_of(actor_id)
        if after is not None:
            query = query.where(Organization.id > after)
        async with self._db.read() as session:
            return (await session.scalars(query.order_by(Organization.id).limit(limit))).all()

    async def rename(
        self, actor_id: UUID, organization_id: UUID, name: str, *, expected_version: int | None = None
    ) -> Organization:
        """Rename an organization; only admins may.

        Raises:
            InvalidName: `name` is invalid.
            OrganizationChanged: the organization is not at `expected_version`.
        """
        name = normalise_name(name)
        async with self._db.transaction() as tx:
            organization = await lock_organization(tx.session, organization_id)
            await require_role(tx.session, actor_id, organization_id, Role.ADMIN)
            if expected_version not in {None, organization.version}:
                raise OrganizationChanged(f"the organization is at version {organization.version} now")
            if name == organization.name:
                return organization
            organization.name = name
            organization.version += 1
            organization.updated_at = self._now()
            event = OrganizationUpdated(organization_id=organization_id, actor_id=actor_id, name=name)
            await self._bus.publish(event)
        return organization

    async def list_members(
        self, actor_id: UUID, organization_id: UUID, *, after: UUID | None = None, limit: int = 100
    ) -> Sequence[MemberView]:
        """Return the members after the user id `after`, in the order of their sign-ups."""
        query = (
            select(User.id.label("user_id"), User.email, User.name, Member.role, Member.joined_at)
            .join(Member, Member.user_id == User.id)
            .where(Member.organization_id == organization_id)
        )
        if after is not None:
            query = query.where(User.id > after)
        async with self._db.read() as session:
            await require_role(session, actor_id, organization_id, Role.MEMBER)
            rows = await session.execute(query.order_by(User.id).limit(limit))
            return [MemberView(**row) for row in rows.mappings()]

    async def change_role(self, actor_id: UUID, organization_id: UUID, user_id: UUID, role: Role) -> None:
        """Change a member's role; only owners may. The member's open invites beyond the new role are withdrawn.

        Raises:
            MemberNotFound: the user is not in the organization.
            LastOwner: the member is the only owner.
        """
        async with self._db.transaction() as tx:
            await lock_organization(tx.session, organization_id)
            await require_role(tx.session, actor_id, organization_id, Role.OWNER)
            member = await find_member(tx.session, organization_id, user_id)
            if member.role is role:
                return
            await require_other_owner(tx.session, member)
            member.role = role
            event = MemberUpdated(organization_id=organization_id, actor_id=actor_id, user_id=user_id, role=role)
            await self._bus.publish(event)
            await self._withdraw_unbacked(tx.session, actor_id, member, role)

    async def remove_member(self, actor_id: UUID, organization_id: UUID, user_id: UUID) -> None:
        """Remove a member: the actor itself, or as an admin any member whose role is not higher.

        Open invites that the user made, and one to the user's own email address, are withdrawn in the same transaction.

        Raises:
            MemberNotFound: the user is not in the organization.
            LastOwner: the member is the only owner.
        """
        async with self._db.transaction() as tx:
            await lock_organization(tx.session, organization_id)
            needed = Role.MEMBER if actor_id == user_id else Role.ADMIN
            held = await require_role(tx.session, actor_id, organization_id, needed)
            member = await find_member(tx.session, organization_id, user_id)
            if not held.covers(member.role):
                raise NotAllowed(
                    f"a member with the role {member.role} cannot be removed by a member with the role {held}"
                )
            await require_other_owner(tx.session, member)
            await tx.session.delete(member)
            event = MemberLeft(organization_id=organization_id, actor_id=actor_id, user_id=user_id)
            await self._bus.publish(event)
            await self._withdraw_unbacked(tx.session, actor_id, member, None)

    async def invite(self, actor_id: UUID, organization_id: UUID, *, email: str, role: Role = Role.MEMBER) -> Invite:
        """Invite the owner of an email address; only admins may, to roles that their own covers.

        Raises:
            InvalidEmail: `email` is not an email address.
            AlreadyMember: a member has this email address.
            AlreadyInvited: an invite to this email address is open.
            TooManyInvites: the actor has reached the limit of invites per hour, or of open invites here.
        """
        now = self._clock.time()
        invite = Invite(
            id=new_id(),
            organization_id=organization_id,
            email=normalise_email(email),
            role=role,
            status=InviteStatus.PENDING,
            invited_by=actor_id,
            created_at=utc(now),
            expires_at=utc(now + self._invite_lifetime),
        )
        async with self._db.transaction() as tx:
            organization = await lock_organization(tx.session, organization_id)
            held = await require_role(tx.session, actor_id, organization_id, Role.ADMIN)
            if not held.invites_to(role):
                raise NotAllowed(f"a member with the role {held} cannot invite to the role {role}")
            await require_within_limits(tx.session, invite, limit=self._max_invites)
            await require_uninvited(tx.session, organization_id, invite.email, utc(now))
            deadline = InviteDeadlineReached(invite_id=invite.id)
            invite.expiry_id = await self._bus.publish_scheduled(deadline, invite.expires_at)
            tx.session.add(invite)
            await tx.session.flush()
            await self._bus.publish(invitation_of(invite, organization))
        return invite

    async def list_invites(
        self, actor_id: UUID, organization_id: UUID, *, after: UUID | None = None, limit: int = 100
    ) -> Sequence[Invite]:
        """Return the invites, open or not, after the id `after`, oldest first; only admins may see them."""
        query = select(Invite).where(Invite.organization_id == organization_id)
        if after is not None:
            query = query.where(Invite.id > after)
        async with self._db.read() as session:
            await require_role(session, actor_id, organization_id, Role.ADMIN)
            return (await session.scalars(query.order_by(Invite.id).limit(limit))).all()

    async def withdraw_invite(self, actor_id: UUID, organization_id: UUID, invite_id: UUID) -> None:
        """Close an open invite; only admins may. Raises `InviteNotFound`."""
        async with self._db.transaction() as tx:
            await lock_organization(tx.session, organization_id)
            await require_role(tx.session, actor_id, organization_id, Role.ADMIN)
            invite = await find_open(tx.session, invite_id, self._now())
            if invite is None or invite.organization_id != organization_id:
                raise InviteNotFound(str(invite_id))
            await self._withdraw(invite, actor_id)

    async def accept_invite(self, actor_id: UUID, token: str) -> Organization:
        """Make the actor a member by an invite's token, and cancel the invite's deadline.

        Raises:
            InviteNotFound: no open invite has this token, or its inviter's role no longer allows it.
            AlreadyMember: the actor is in the organization already.
        """
        async with self._db.transaction() as tx:
            organization_id = await organization_of(tx.session, token)
            if organization_id is None:
                raise InviteNotFound("no open invite has this token")
            organization = await lock_organization(tx.session, organization_id)
            invite = await find_by_token(tx.session, token, self._now())
            if invite is None or not await is_backed(tx.session, invite):
                raise InviteNotFound("no open invite has this token")
            if await is_member(tx.session, invite.organization_id, actor_id):
                raise AlreadyMember("you are a member of this organization already")
            await self._close(invite, InviteStatus.ACCEPTED)
            await self._join(invite, actor_id)
            return organization

    async def new_invite_token(self, invite_id: UUID) -> str | None:
        """Return a new token for the invite and invalidate the previous one; None if the invite is not open."""
        async with self._db.transaction() as tx:
            invite = await find_open(tx.session, invite_id, self._now())
            return replace_token(invite) if invite else None

    async def expire_invite(self, event: InviteDeadlineReached) -> None:
        """Close an invite that was not accepted in time, and publish `InviteExpired`."""
        async with self._db.transaction() as tx:
            if invite := await find_pending(tx.session, event.invite_id):
                invite.status = InviteStatus.EXPIRED
                await self._bus.publish(expiry_of(invite))

    def _now(self) -> datetime:
        return utc(self._clock.time())

    async def _close(self, invite: Invite, status: InviteStatus) -> None:
        invite.status = status
        await self._bus.cancel(invite.expiry_id)

    async def _withdraw(self, invite: Invite, actor_id: UUID) -> None:
        await self._close(invite, InviteStatus.WITHDRAWN)
        await self._bus.publish(withdrawal_of(invite, actor_id))

    async def _withdraw_unbacked(
        self, session: AsyncSession, actor_id: UUID, member: Member, role: Role | None
    ) -> None:
        for invite in await find_unbacked(session, member.organization_id, member.user_id, role, self._now()):
            await self._withdraw(invite, actor_id)

    async def _join(self, invite: Invite, user_id: UUID) -> None:
        now = self._now()
        member = Member(organization_id=invite.organization_id, user_id=user_id, role=invite.role, joined_at=now)
        event = MemberJoined(
            organization_id=invite.organization_id, actor_id=user_id, invite_id=invite.id, role=invite.role
        )
        async with self._db.transaction() as tx:
            tx.session.add(member)
            await tx.session.flush()
            await self._bus.publish(event)

    async def _create(self, owner_id: UUID, name: str, *, personal: bool) -> Organization:
        now = self._now()
        organization = Organization(name=name, personal=personal, version=1, created_at=now, updated_at=now)
        async with self._db.transaction() as tx:
            tx.session.add(organization)
            await tx.session.flush()
            owner = Member(organization_id=organization.id, user_id=owner_id, role=Role.OWNER, joined_at=now)
            tx.session.add(owner)
            await tx.session.flush()
            event = OrganizationCreated(organization_id=organization.id, actor_id=owner_id, name=name)
            await self._bus.publish(event)
        return organization


def _organizations_of(user_id: UUID) -> Select[Organization]:
    return select(Organization).join(Member, Member.organization_id == Organization.id).where(Member.user_id == user_id)
