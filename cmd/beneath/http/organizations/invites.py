"""The routes of invites to an organization."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request

from beneath.http.auth import Reader, Writer
from beneath.http.core.limits import AddressLimit
from beneath.http.core.openapi import AUTHENTICATED, WITH_BODY, problems
from beneath.http.core.pages import ByAge, Page
from beneath.http.core.problems import NOT_ALLOWED, NOT_FOUND, TOO_MANY_REQUESTS
from beneath.http.idempotency.problems import KEY_REUSED
from beneath.http.idempotency.routing import KEYED, IdempotentRoute
from beneath.http.organizations.problems import ALREADY_INVITED, ALREADY_MEMBER
from beneath.http.organizations.schemas import Acceptance, InviteOut, NewInvite, OrganizationOut
from beneath.http.services import Using

router = APIRouter(tags=["invites"], route_class=IdempotentRoute)
INVITES = "/organizations/{organization_id}/invites"


@router.get(INVITES, responses=problems(NOT_FOUND, *AUTHENTICATED, NOT_ALLOWED))
async def list_invites(
    organization_id: UUID, caller: Reader, using: Using, page: Annotated[ByAge, Query()]
) -> Page[InviteOut]:
    """List an organization's invites, open or not; admins and owners may."""
    rows = await using.organization.list_invites(
        caller.user_id, organization_id, after=page.cursor, limit=page.limit + 1
    )
    return page.of(rows, InviteOut.model_validate, lambda row: row.id)


@router.post(
    INVITES,
    status_code=201,
    dependencies=KEYED,
    responses=problems(
        KEY_REUSED,
        NOT_FOUND,
        ALREADY_INVITED,
        ALREADY_MEMBER,
        TOO_MANY_REQUESTS,
        *AUTHENTICATED,
        NOT_ALLOWED,
        *WITH_BODY,
    ),
)
async def invite(organization_id: UUID, body: NewInvite, caller: Writer, using: Using, request: Request) -> InviteOut:
    """Invite a person by mail; admins and owners may, to roles up to their own."""
    limit: AddressLimit = request.app.state.invite_limit
    limit.spend(request)
    made = await using.organization.invite(caller.user_id, organization_id, email=body.email, role=body.role)
    return InviteOut.model_validate(made)


@router.delete(INVITES + "/{invite_id}", status_code=204, responses=problems(NOT_FOUND, *AUTHENTICATED, NOT_ALLOWED))
async def withdraw_invite(organization_id: UUID, invite_id: UUID, caller: Writer, using: Using) -> None:
    """Withdraw an open invite; admins and owners may."""
    await using.organization.withdraw_invite(caller.user_id, organization_id, invite_id)


@router.post(
    "/invites/accept",
    dependencies=KEYED,
    responses=problems(KEY_REUSED, NOT_FOUND, ALREADY_MEMBER, *AUTHENTICATED, *WITH_BODY),
)
async def accept_invite(body: Acceptance, caller: Writer, using: Using) -> OrganizationOut:
    """Become a member by the token from an invite's mail."""
    return OrganizationOut.model_validate(await using.organization.accept_invite(caller.user_id, body.token))
