"""The audit service: records each organization's events in a journal, in order."""

from collections.abc import Sequence
from typing import Any, Protocol
from uuid import UUID

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from bus import Bus, Delivery
from infra.db import Database
from models.audit import JournalEntry
from models.base import utc
from models.organization import (
    InviteExpired,
    InviteWithdrawn,
    MemberInvited,
    MemberJoined,
    MemberLeft,
    MemberUpdated,
    OrganizationCreated,
    OrganizationUpdated,
    Role,
)
from models.project import ProjectCreated, ProjectDeleted, ProjectUpdated

OrganizationEvent = (
    OrganizationCreated
    | OrganizationUpdated
    | MemberInvited
    | InviteExpired
    | InviteWithdrawn
    | MemberJoined
    | MemberUpdated
    | MemberLeft
    | ProjectCreated
    | ProjectUpdated
    | ProjectDeleted
)
"""All events that the journal records. One listener for the union handles them in publish order."""


class Access(Protocol):
    """The service that checks roles in organizations."""

    async def require(
        self, session: AsyncSession, user_id: UUID, organization_id: UUID, role: Role = Role.MEMBER
    ) -> None:
        """Return if the user has `role` or a higher one in the organization; raise an error otherwise."""
        ...


class AuditService:
    """Owns the journals, to which it only appends."""

    def __init__(self, bus: Bus, db: Database, access: Access) -> None:
        self._db = db
        self._access = access
        # Ordered by organization, so that sequence numbers do not collide; once, so that no entry is recorded twice.
        bus.add_async_ordered_listener(self.record, once=True)

    async def record(self, event: OrganizationEvent, delivery: Delivery) -> None:
        """Append the event to its organization's journal."""
        last = select(func.coalesce(func.max(JournalEntry.sequence), 0)).where(
            JournalEntry.organization_id == event.organization_id
        )
        async with self._db.transaction() as tx:
            entry = JournalEntry(
                organization_id=event.organization_id,
                sequence=(await tx.session.scalars(last)).one() + 1,
                event=delivery.event,
                event_id=delivery.id,
                actor_id=getattr(event, "actor_id", None),
                details=_details(event),
                at=utc(delivery.published_at),
            )
            tx.session.add(entry)

    async def list_entries(
        self, actor_id: UUID, organization_id: UUID, *, after: int = 0, limit: int = 100
    ) -> Sequence[JournalEntry]:
        """Return the entries of an organization's journal after the sequence number `after`, oldest first."""
        query = (
            select(JournalEntry)
            .where(JournalEntry.organization_id == organization_id, JournalEntry.sequence > after)
            .order_by(JournalEntry.sequence)
            .limit(limit)
        )
        async with self._db.read() as session:
            await self._access.require(session, actor_id, organization_id)
            return (await session.scalars(query)).all()


def _details(event: OrganizationEvent) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(event)
    return {name: value for name, value in fields.items() if name not in {"organization_id", "actor_id"}}
