"""The routes of an organization's members."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from beneath.http.auth import Reader, Writer
from beneath.http.core.openapi import AUTHENTICATED, WITH_BODY, problems
from beneath.http.core.pages import ByAge, Page
from beneath.http.core.problems import NOT_ALLOWED, NOT_FOUND
from beneath.http.core.routing import ApiRoute
from beneath.http.organizations.problems import LAST_OWNER
from beneath.http.organizations.schemas import MemberOut, RoleChange
from beneath.http.services import Using

router = APIRouter(prefix="/organizations/{organization_id}/members", tags=["members"], route_class=ApiRoute)


@router.get("", responses=problems(NOT_FOUND, *AUTHENTICATED))
async def list_members(
    organization_id: UUID, caller: Reader, using: Using, page: Annotated[ByAge, Query()]
) -> Page[MemberOut]:
    """List the members of an organization."""
    rows = await using.organization.list_members(
        caller.user_id, organization_id, after=page.cursor, limit=page.limit + 1
    )
    return page.of(rows, MemberOut.model_validate, lambda row: row.user_id)


@router.patch(
    "/{user_id}",
    status_code=204,
    responses=problems(NOT_FOUND, LAST_OWNER, *AUTHENTICATED, NOT_ALLOWED, *WITH_BODY),
)
async def change_role(organization_id: UUID, user_id: UUID, body: RoleChange, caller: Writer, using: Using) -> None:
    """Give a member another role; owners may."""
    await using.organization.change_role(caller.user_id, organization_id, user_id, body.role)


@router.delete("/{user_id}", status_code=204, responses=problems(NOT_FOUND, LAST_OWNER, *AUTHENTICATED, NOT_ALLOWED))
async def remove_member(organization_id: UUID, user_id: UUID, caller: Writer, using: Using) -> None:
    """Leave an organization, with your own id; or remove a member, as an admin or owner."""
    await using.organization.remove_member(caller.user_id, organization_id, user_id)
