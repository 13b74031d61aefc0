"""Finding invites, and what is said about them."""

import hashlib
import secrets
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from models.organization import Invite, InviteExpired, InviteStatus, Member, MemberInvited, Organization
from models.user import User
from services.organization.errors import AlreadyInvited, AlreadyMember


async def find_pending(session: AsyncSession, invite_id: UUID) -> Invite | None:
    """Return an invite that was not closed yet, whatever the time, locked until the transaction ends."""
    query = select(Invite).where(Invite.id == invite_id, Invite.status == InviteStatus.PENDING)
    return await session.scalar(query.with_for_update())


async def find_open(session: AsyncSession, invite_id: UUID, now: datetime) -> Invite | None:
    """Return an invite that can be accepted, locked until the transaction ends."""
    query = select(Invite).where(Invite.id == invite_id, *_open_at(now))
    return await session.scalar(query.with_for_update())


async def find_by_token(session: AsyncSession, token: str, now: datetime) -> Invite | None:
    """Return the open invite whose latest mail has `token`, locked until the transaction ends."""
    query = select(Invite).where(Invite.token_hash == _digest(token), *_open_at(now))
    return await session.scalar(query.with_for_update())


async def require_uninvited(session: AsyncSession, organization_id: UUID, email: str, now: datetime) -> None:
    """Raise `AlreadyMember` or `AlreadyInvited` if the mailbox has no use for an invite."""
    member = (
        select(Member.user_id)
        .join(User, User.id == Member.user_id)
        .where(Member.organization_id == organization_id, User.email == email)
    )
    if await session.scalar(member):
        raise AlreadyMember(f"{email} is in this organization already")
    invite = select(Invite.id).where(Invite.organization_id == organization_id, Invite.email == email, *_open_at(now))
    if await session.scalar(invite):
        raise AlreadyInvited(f"an invite to {email} is open already")


def replace_token(invite: Invite) -> str:
    """Return a new token for the invite, which keeps only its hash; the token before is worthless from now on."""
    token = secrets.token_urlsafe(32)
    invite.token_hash = _digest(token)
    return token


def expiry_of(invite: Invite) -> InviteExpired:
    """Return the event that tells that nobody accepted in time."""
    return InviteExpired(organization_id=invite.organization_id, invite_id=invite.id, email=invite.email)


def invitation_of(invite: Invite, organization: Organization) -> MemberInvited:
    """Return the event that gets the invite mailed."""
    return MemberInvited(
        organization_id=organization.id,
        actor_id=invite.invited_by,
        invite_id=invite.id,
        email=invite.email,
        organization_name=organization.name,
    )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _open_at(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return Invite.status == InviteStatus.PENDING, Invite.expires_at > now
