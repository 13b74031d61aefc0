"""Queries and locks that check roles in an organization."""

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from models.organization import Member, Organization, Role
from services.organization.errors import LastOwner, MemberNotFound, NotAllowed, OrganizationNotFound


async def lock_organization(session: AsyncSession, organization_id: UUID) -> Organization:
    """Return the organization, locked until the transaction ends; raise `OrganizationNotFound`.

    Every change of members or invites locks it first and checks roles afterwards. So an acceptance and the removal of
    the inviter, or two removals, run one after the other, and cannot deadlock.
    """
    # FOR UPDATE would block inserts of rows whose foreign key refers to the organization, such as projects.
    query = select(Organization).where(Organization.id == organization_id).with_for_update(key_share=True)
    organization = await session.scalar(query.execution_options(populate_existing=True))
    if organization is None:
        raise OrganizationNotFound(str(organization_id))
    return organization


async def require_role(session: AsyncSession, user_id: UUID, organization_id: UUID, role: Role) -> Role:
    """Return the user's role if it covers `role`.

    Raises:
        OrganizationNotFound: the organization does not exist, or the user is not a member.
        NotAllowed: the user's role is too low.
    """
    query = select(Member.role).where(Member.organization_id == organization_id, Member.user_id == user_id)
    held = await session.scalar(query)
    if held is None:
        raise OrganizationNotFound(str(organization_id))
    if not held.covers(role):
        raise NotAllowed(f"this requires the role {role}, yours is {held}")
    return held


async def find_member(session: AsyncSession, organization_id: UUID, user_id: UUID) -> Member:
    """Return the member, locked until the transaction ends; raise `MemberNotFound`."""
    query = select(Member).where(Member.organization_id == organization_id, Member.user_id == user_id)
    member = await session.scalar(query.with_for_update())
    if member is None:
        raise MemberNotFound(str(user_id))
    return member


async def require_other_owner(session: AsyncSession, member: Member) -> None:
    """Raise `LastOwner` if `member` is the organization's only owner."""
    if member.role is not Role.OWNER:
        return
    owners = select(Member.user_id).where(Member.organization_id == member.organization_id, Member.role == Role.OWNER)
    # Locked: of two owners who leave at once, each would count the other.
    if len((await session.scalars(owners.with_for_update())).all()) < 2:  # noqa: PLR2004
        raise LastOwner(str(member.organization_id))


async def is_member(session: AsyncSession, organization_id: UUID, user_id: UUID) -> bool:
    """Return whether the user is a member of the organization."""
    query = select(func.count()).where(Member.organization_id == organization_id, Member.user_id == user_id)
    return bool(await session.scalar(query))
