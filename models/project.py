"""Table and events of projects."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, new_id


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
class ProjectCreated:
    """A project was created."""

    organization_id: UUID
    actor_id: UUID
    project_id: UUID
    name: str

    def ordering_key(self) -> str:
        return str(self.organization_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectUpdated:
    """A project's name or description changed."""

    organization_id: UUID
    actor_id: UUID
    project_id: UUID
    name: str

    def ordering_key(self) -> str:
        return str(self.organization_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectDeleted:
    """A project was deleted; the journal shows its last name."""

    organization_id: UUID
    actor_id: UUID
    project_id: UUID
    name: str

    def ordering_key(self) -> str:
        return str(self.organization_id)
