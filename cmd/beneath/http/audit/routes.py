"""The route of an organization's journal."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from beneath.http.audit.schemas import EntryOut
from beneath.http.auth import Reader
from beneath.http.core.openapi import AUTHENTICATED, problems
from beneath.http.core.pages import BySequence, Page
from beneath.http.core.problems import NOT_FOUND
from beneath.http.core.routing import ApiRoute
from beneath.http.services import Using

router = APIRouter(prefix="/organizations/{organization_id}/audit", tags=["audit"], route_class=ApiRoute)


@router.get("", responses=problems(NOT_FOUND, *AUTHENTICATED))
async def list_entries(
    organization_id: UUID, caller: Reader, using: Using, page: Annotated[BySequence, Query()]
) -> Page[EntryOut]:
    """List the events of an organization in order; an entry appears shortly after its event."""
    rows = await using.audit.list_entries(caller.user_id, organization_id, after=page.cursor or 0, limit=page.limit + 1)
    return page.of(rows, EntryOut.model_validate, lambda row: row.sequence)
