"""The routes of API secrets."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from beneath.http.auth import Keeper
from beneath.http.core.openapi import AUTHENTICATED, WITH_BODY, problems
from beneath.http.core.pages import ByAge, Page
from beneath.http.core.problems import NOT_FOUND
from beneath.http.idempotency.problems import ALREADY_DONE, KEY_REUSED
from beneath.http.idempotency.routing import KEYED, IdempotentSecretRoute
from beneath.http.secrets.schemas import IssuedOut, NewSecret, SecretOut
from beneath.http.services import Using

router = APIRouter(prefix="/secrets", tags=["secrets"], route_class=IdempotentSecretRoute)


@router.get("", responses=problems(*AUTHENTICATED))
async def list_secrets(caller: Keeper, using: Using, page: Annotated[ByAge, Query()]) -> Page[SecretOut]:
    """List your valid secrets."""
    rows = await using.secret.list_secrets(caller.user_id, after=page.cursor, limit=page.limit + 1)
    return page.of(rows, SecretOut.model_validate, lambda row: row.id)


@router.post(
    "", status_code=201, dependencies=KEYED, responses=problems(ALREADY_DONE, KEY_REUSED, *AUTHENTICATED, *WITH_BODY)
)
async def issue_secret(body: NewSecret, caller: Keeper, using: Using) -> IssuedOut:
    """Issue another secret, with scopes of the secret that you use."""
    issued = await using.secret.issue(caller.user_id, name=body.name, scopes=set(body.scopes), within=caller.scopes)
    return IssuedOut.model_validate(issued)


@router.delete("/{secret_id}", status_code=204, responses=problems(NOT_FOUND, *AUTHENTICATED))
async def revoke_secret(secret_id: UUID, caller: Keeper, using: Using) -> None:
    """Revoke a secret, which may be the one that you use; it is refused from now on."""
    await using.secret.revoke(caller.user_id, secret_id)
