"""Table and events of projects."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, new_id
from models.organization import OrganizationScoped


class Project(Base):
    """A project of an organization; `version` grows by one with every change."""

    __tablename__ = "projects"
    __table_args__ = (Index(None, "organization_id", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organization_id: Mapped[UUID] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(String(2000), default="")
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectCreated(OrganizationScoped):
    """A project was created."""

    actor_id: UUID
    project_id: UUID
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectUpdated(OrganizationScoped):
    """A project's name or description changed."""

    actor_id: UUID
    project_id: UUID
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectDeleted(OrganizationScoped):
    """A project was deleted; the journal shows its last name."""

    actor_id: UUID
    project_id: UUID
    name: str
