"""Authentication of requests by API secret."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer

from beneath.http.core.limits import AddressLimit, address_of
from beneath.http.core.problems import INSUFFICIENT_SCOPE, TOO_MANY_FAILURES, UNAUTHENTICATED, ProblemError, retry_after
from beneath.http.core.routing import Guard
from beneath.http.services import services_of
from models.secret import Scope
from services.secret.cache import Principal
from services.secret.errors import InvalidSecret


class Bearer(Guard):
    """A FastAPI dependency: the principal of `Authorization: Bearer <secret>`; requires that the secret has `scope`."""

    def __init__(self, scope: Scope) -> None:
        self.model = HTTPBearer(description="An API secret, from sign-up or `POST /v1/secrets`.")
        self.scheme_name = "secret"
        self._scope = scope

    async def __call__(self, request: Request) -> Principal:
        principal = await authenticate(request)
        if self._scope not in principal.scopes:
            detail = f"this request requires a secret with the scope {self._scope}"
            challenge = f'Bearer error="insufficient_scope", scope="{self._scope}"'
            raise ProblemError(INSUFFICIENT_SCOPE, detail, {"WWW-Authenticate": challenge})
        return principal


Reader = Annotated[Principal, Depends(Bearer(Scope.READ))]
Writer = Annotated[Principal, Depends(Bearer(Scope.WRITE))]
Keeper = Annotated[Principal, Depends(Bearer(Scope.SECRETS))]
"""The principal of a secret that may issue, list and revoke secrets."""


async def authenticate(request: Request) -> Principal:
    """Return the principal of the request's secret, looked up once per request.

    Raises:
        ProblemError: the secret is missing, unknown or revoked, or too many were wrong.
    """
    if not hasattr(request.state, "principal"):
        request.state.principal = await _authenticate(request)
    principal: Principal = request.state.principal
    return principal


async def _authenticate(request: Request) -> Principal:
    services = await services_of(request)
    limit: AddressLimit = request.app.state.failure_limit
    # Of two headers, a proxy may have checked the other one.
    sent = request.headers.getlist("authorization")
    scheme, _, token = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        detail = "send one header Authorization: Bearer <secret>"
        raise ProblemError(UNAUTHENTICATED, detail, {"WWW-Authenticate": "Bearer"})
    try:
        return await services.secret.authenticate(token)
    except InvalidSecret:
        # Counted after the look-up: many users may share an address, and a valid secret is never refused.
        raise _refusal(limit.take(address_of(request))) from None


def _refusal(wait: float) -> ProblemError:
    if wait:
        detail = f"too many wrong secrets came from your address; try again in {wait:.0f} s"
        return ProblemError(TOO_MANY_FAILURES, detail, retry_after(wait))
    headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    return ProblemError(UNAUTHENTICATED, "the secret is wrong or was revoked", headers)
