"""The routes of organizations."""

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
from beneath.http.organizations.schemas import NewOrganization, OrganizationChange, OrganizationOut
from beneath.http.services import Using

router = APIRouter(prefix="/organizations", tags=["organizations"], route_class=IdempotentRoute)


@router.get("", responses=problems(*AUTHENTICATED))
async def list_organizations(caller: Reader, using: Using, page: Annotated[ByAge, Query()]) -> Page[OrganizationOut]:
    """List the organizations of which you are a member."""
    rows = await using.organization.list_organizations(caller.user_id, after=page.cursor, limit=page.limit + 1)
    return page.of(rows, OrganizationOut.model_validate, lambda row: row.id)


@router.post(
    "",
    status_code=201,
    dependencies=KEYED,
    responses=versioned(201, new=True) | problems(KEY_REUSED, *AUTHENTICATED, *WITH_BODY),
)
async def create_organization(
    body: NewOrganization, caller: Writer, using: Using, response: Response
) -> OrganizationOut:
    """Create an organization with a first project in it; you own it."""
    organization = await using.organization.create(caller.user_id, body.name)
    tag(response, organization.version)
    response.headers["Location"] = f"/v1/organizations/{organization.id}"
    return OrganizationOut.model_validate(organization)


@router.get("/{organization_id}", responses=versioned(200) | problems(NOT_FOUND, *AUTHENTICATED))
async def show_organization(organization_id: UUID, caller: Reader, using: Using, response: Response) -> OrganizationOut:
    """Show an organization of which you are a member."""
    organization = await using.organization.get(caller.user_id, organization_id)
    tag(response, organization.version)
    return OrganizationOut.model_validate(organization)


@router.patch(
    "/{organization_id}",
    responses=versioned(200) | problems(NOT_FOUND, CHANGED, *AUTHENTICATED, NOT_ALLOWED, *WITH_BODY),
)
async def rename_organization(
    organization_id: UUID,
    body: OrganizationChange,
    caller: Writer,
    using: Using,
    expected: Expected,
    response: Response,
) -> OrganizationOut:
    """Rename an organization; admins and owners may."""
    organization = await using.organization.rename(
        caller.user_id, organization_id, body.name, expected_version=expected
    )
    tag(response, organization.version)
    return OrganizationOut.model_validate(organization)
