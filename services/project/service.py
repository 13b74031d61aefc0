"""The project service: creates, changes and deletes projects, and a first one for each organization."""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from bus import Bus
from infra.clock import Clock
from infra.db import Database
from models.base import utc
from models.name import normalise_name
from models.organization import OrganizationCreated, Role
from models.project import Project, ProjectCreated, ProjectDeleted, ProjectUpdated
from services.project.errors import ProjectChanged, ProjectNotFound

STARTER_NAME = "Starter project"


class Access(Protocol):
    """The service that checks roles in organizations."""

    async def require(
        self, session: AsyncSession, user_id: UUID, organization_id: UUID, role: Role = Role.MEMBER
    ) -> None:
        """Return if the user has `role` or a higher one in the organization; raise an error otherwise."""
        ...


class ProjectService:
    """Owns the projects."""

    def __init__(self, bus: Bus, db: Database, clock: Clock, access: Access) -> None:
        self._bus = bus
        self._db = db
        self._clock = clock
        self._access = access
        bus.add_sync_listener(self.create_starter)

    async def create_starter(self, event: OrganizationCreated) -> None:
        """Create a first project for a new organization, in the same transaction."""
        await self._create(event.actor_id, event.organization_id, STARTER_NAME, "")

    async def create(self, actor_id: UUID, organization_id: UUID, *, name: str, description: str = "") -> Project:
        """Create a project; any member may. Raises `InvalidName`."""
        async with self._db.transaction() as tx:
            await self._access.require(tx.session, actor_id, organization_id)
            return await self._create(actor_id, organization_id, normalise_name(name), description)

    async def get(self, actor_id: UUID, organization_id: UUID, project_id: UUID) -> Project:
        """Return a project; raise `ProjectNotFound`."""
        async with self._db.read() as session:
            await self._access.require(session, actor_id, organization_id)
            return await _find(session, organization_id, project_id)

    async def list_projects(
        self, actor_id: UUID, organization_id: UUID, *, after: UUID | None = None, limit: int = 100
    ) -> Sequence[Project]:
        """Return the organization's projects after the id `after`, oldest first."""
        query = select(Project).where(Project.organization_id == organization_id)
        if after is not None:
            query = query.where(Project.id > after)
        async with self._db.read() as session:
            await self._access.require(session, actor_id, organization_id)
            return (await session.scalars(query.order_by(Project.id).limit(limit))).all()

    async def update(
        self,
        actor_id: UUID,
        organization_id: UUID,
        project_id: UUID,
        *,
        name: str | None = None,
        description: str | None = None,
        expected_version: int | None = None,
    ) -> Project:
        """Change the given fields of a project; any member may.

        Raises:
            InvalidName: `name` is invalid.
            ProjectNotFound: the project does not exist.
            ProjectChanged: the project is not at `expected_version`.
        """
        async with self._db.transaction() as tx:
            await self._access.require(tx.session, actor_id, organization_id)
            project = await _find(tx.session, organization_id, project_id, expected_version, lock=True)
            project.name = project.name if name is None else normalise_name(name)
            project.description = project.description if description is None else description
            if not tx.session.is_modified(project):
                return project
            project.version += 1
            project.updated_at = utc(self._clock.time())
            event = ProjectUpdated(
                organization_id=organization_id, actor_id=actor_id, project_id=project_id, name=project.name
            )
            await self._bus.publish(event)
        return project

    async def delete(
        self, actor_id: UUID, organization_id: UUID, project_id: UUID, *, expected_version: int | None = None
    ) -> None:
        """Delete a project permanently; only admins may. Raises `ProjectNotFound` or `ProjectChanged`."""
        async with self._db.transaction() as tx:
            await self._access.require(tx.session, actor_id, organization_id, Role.ADMIN)
            project = await _find(tx.session, organization_id, project_id, expected_version, lock=True)
            await tx.session.delete(project)
            event = ProjectDeleted(
                organization_id=organization_id, actor_id=actor_id, project_id=project_id, name=project.name
            )
            await self._bus.publish(event)

    async def _create(self, actor_id: UUID, organization_id: UUID, name: str, description: str) -> Project:
        now = utc(self._clock.time())
        project = Project(
            organization_id=organization_id,
            name=name,
            description=description,
            version=1,
            created_at=now,
            updated_at=now,
        )
        async with self._db.transaction() as tx:
            tx.session.add(project)
            await tx.session.flush()
            event = ProjectCreated(organization_id=organization_id, actor_id=actor_id, project_id=project.id, name=name)
            await self._bus.publish(event)
        return project


async def _find(
    session: AsyncSession,
    organization_id: UUID,
    project_id: UUID,
    expected_version: int | None = None,
    *,
    lock: bool = False,
) -> Project:
    query = select(Project).where(Project.id == project_id, Project.organization_id == organization_id)
    project = await session.scalar(query.with_for_update() if lock else query)
    if project is None:
        raise ProjectNotFound(str(project_id))
    if expected_version not in {None, project.version}:
        raise ProjectChanged(f"the project is at version {project.version} now")
    return project
