"""The bodies of projects."""

from datetime import datetime
from uuid import UUID

from pydantic import Field

from beneath.http.core.schemas import Body, Shown, Text, unchanged
from beneath.http.fields import Name


class NewProject(Body):
    """A project to create."""

    name: Name = Field(examples=["Engine"])
    description: Text = ""


class ProjectChange(Body):
    """A change of a project."""

    name: Name = unchanged()
    description: Text = unchanged()


class ProjectOut(Shown):
    """A project of an organization."""

    id: UUID
    organization_id: UUID
    name: str
    description: str
    created_at: datetime
    updated_at: datetime
