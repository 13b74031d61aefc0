"""The routes of an organization's projects."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from beneath.http.auth import Reader, Writer
from beneath.http.core.etags import Expected, tag
from beneath.http.core.openapi import AUTHENTICATED, WITH_BODY, problems, versioned
from beneath.http.core.pages import ByAge, Page
from beneath.http.core.problems import CHANGED, NOT_ALLOWED, NOT_FOUND
from beneath.http.idempotency.problems import KEY_REUSED
from beneath.http.idempotency.routing import KEYED, IdempotentRoute
from beneath.http.projects.schemas import NewProject, ProjectChange, ProjectOut
from beneath.http.services import Using

router = APIRouter(prefix="/organizations/{organization_id}/projects", tags=["projects"], route_class=IdempotentRoute)


@router.get("", responses=problems(NOT_FOUND, *AUTHENTICATED))
async def list_projects(
    organization_id: UUID, caller: Reader, using: Using, page: Annotated[ByAge, Query()]
) -> Page[ProjectOut]:
    """List an organization's projects."""
    rows = await using.project.list_projects(caller.user_id, organization_id, after=page.cursor, limit=page.limit + 1)
    return page.of(rows, ProjectOut.model_validate, lambda row: row.id)


@router.post(
    "",
    status_code=201,
    dependencies=KEYED,
    responses=versioned(201, new=True) | problems(KEY_REUSED, NOT_FOUND, *AUTHENTICATED, *WITH_BODY),
)
async def create_project(
    organization_id: UUID, body: NewProject, caller: Writer, using: Using, response: Response
) -> ProjectOut:
    """Create a project; any member may."""
    project = await using.project.create(caller.user_id, organization_id, name=body.name, description=body.description)
    tag(response, project.version)
    response.headers["Location"] = f"/v1/organizations/{organization_id}/projects/{project.id}"
    return ProjectOut.model_validate(project)


@router.get("/{project_id}", responses=versioned(200) | problems(NOT_FOUND, *AUTHENTICATED))
async def show_project(
    organization_id: UUID, project_id: UUID, caller: Reader, using: Using, response: Response
) -> ProjectOut:
    """Show a project."""
    project = await using.project.get(caller.user_id, organization_id, project_id)
    tag(response, project.version)
    return ProjectOut.model_validate(project)


@router.patch("/{project_id}", responses=versioned(200) | problems(NOT_FOUND, CHANGED, *AUTHENTICATED, *WITH_BODY))
async def change_project(
    organization_id: UUID,
    project_id: UUID,
    body: ProjectChange,
    caller: Writer,
    using: Using,
    expected: Expected,
    response: Response,
) -> ProjectOut:
    """Change a project; any member may."""
    changes = body.model_dump(exclude_unset=True)
    project = await using.project.update(
        caller.user_id, organization_id, project_id, **changes, expected_version=expected
    )
    tag(response, project.version)
    return ProjectOut.model_validate(project)


@router.delete("/{project_id}", status_code=204, responses=problems(NOT_FOUND, CHANGED, *AUTHENTICATED, NOT_ALLOWED))
async def delete_project(
    organization_id: UUID, project_id: UUID, caller: Writer, using: Using, expected: Expected
) -> None:
    """Delete a project permanently; admins and owners may."""
    await using.project.delete(caller.user_id, organization_id, project_id, expected_version=expected)
