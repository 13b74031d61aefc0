"""Queries and limits for invites, and the events about them."""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from models.organization import (
    Invite,
    InviteExpired,
    InviteStatus,
    InviteWithdrawn,
    Member,
    MemberInvited,
    Organization,
    Role,
)
from models.user import User
from services.organization.errors import AlreadyInvited, AlreadyMember, TooManyInvites

HOUR: Final = timedelta(hours=1)

MAX_OPEN: Final = 200
"""Open invites of one user to one organization, at most. It limits the work of removing that user."""


async def find_pending(session: AsyncSession, invite_id: UUID) -> Invite | None:
    """Return a pending invite, also after its deadline, locked until the transaction ends."""
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


async def organization_of(session: AsyncSession, token: str) -> UUID | None:
    """Return the organization whose invite has `token`, open or not; nothing is locked."""
    return await session.scalar(select(Invite.organization_id).where(Invite.token_hash == _digest(token)))


async def is_backed(session: AsyncSession, invite: Invite) -> bool:
    """Return whether the inviter's current role allows the invite; the caller must have locked the organization."""
    inviter = select(Member.role).where(
        Member.organization_id == invite.organization_id, Member.user_id == invite.invited_by
    )
    held = await session.scalar(inviter)
    return held is not None and held.invites_to(invite.role)


async def find_unbacked(
    session: AsyncSession, organization_id: UUID, user_id: UUID, role: Role | None, now: datetime
) -> Sequence[Invite]:
    """Return the open invites to withdraw as the user's role becomes `role`, or None on removal, locked.

    These are the user's invites that the new role does not allow; on removal, also those to the user's own mailbox.
    """
    mine = Invite.invited_by == user_id
    if role is None:
        mine |= Invite.email == select(User.email).where(User.id == user_id).scalar_subquery()
    query = select(Invite).where(Invite.organization_id == organization_id, *_open_at(now), mine).order_by(Invite.id)
    invites = (await session.scalars(query.with_for_update())).all()
    return [each for each in invites if role is None or not role.invites_to(each.role)]


async def require_uninvited(session: AsyncSession, organization_id: UUID, email: str, now: datetime) -> None:
    """Raise `AlreadyMember` or `AlreadyInvited` if the mailbox is a member's or has an open invite."""
    member = (
        select(Member.user_id)
        .join(User, User.id == Member.user_id)
        .where(Member.organization_id == organization_id, User.email == email)
    )
    if await session.scalar(member):
        raise AlreadyMember(f"{email} is a member of this organization already")
    invite = select(Invite.id).where(Invite.organization_id == organization_id, Invite.email == email, *_open_at(now))
    if await session.scalar(invite):
        raise AlreadyInvited(f"an invite to {email} is open already")


async def require_within_limits(session: AsyncSession, invite: Invite, *, limit: int) -> None:
    """Raise `TooManyInvites` if the inviter made `limit` in an hour, or has `MAX_OPEN` open to the organization."""
    # Serializes one user's invites to several organizations, which count together.
    await session.execute(select(User.id).where(User.id == invite.invited_by).with_for_update(key_share=True))
    now = invite.created_at
    mine = Invite.invited_by == invite.invited_by
    recent = select(Invite.created_at).where(mine, Invite.created_at > now - HOUR)
    made = (await session.scalars(recent.order_by(Invite.created_at.desc()).limit(limit))).all()
    if len(made) == limit:
        wait = (made[-1] + HOUR - now).total_seconds()
        raise TooManyInvites(f"one user may make {limit} invites in an hour", wait)
    here = select(Invite.expires_at).where(mine, Invite.organization_id == invite.organization_id, *_open_at(now))
    ends = (await session.scalars(here.order_by(Invite.expires_at).limit(MAX_OPEN))).all()
    if len(ends) == MAX_OPEN:
        text = f"{MAX_OPEN} of your invites to this organization are open; withdraw some"
        raise TooManyInvites(text, (ends[0] - now).total_seconds())


def replace_token(invite: Invite) -> str:
    """Return a new token for the invite, which stores only its hash; the previous token becomes invalid."""
    token = secrets.token_urlsafe(32)
    invite.token_hash = _digest(token)
    return token


def expiry_of(invite: Invite) -> InviteExpired:
    """Return the event for an invite that was not accepted in time."""
    return InviteExpired(organization_id=invite.organization_id, invite_id=invite.id, email=invite.email)


def withdrawal_of(invite: Invite, actor_id: UUID) -> InviteWithdrawn:
    """Return the event for an invite that was withdrawn by `actor_id`."""
    return InviteWithdrawn(
        organization_id=invite.organization_id, actor_id=actor_id, invite_id=invite.id, email=invite.email
    )


def invitation_of(invite: Invite, organization: Organization) -> MemberInvited:
    """Return the event whose listener mails the invite."""
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
