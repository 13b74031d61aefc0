"""`Idempotency-Key` on POST: a request that a client repeats after a lost response is carried out once."""

from typing import Annotated, ClassVar, Final

from fastapi import Depends, Header, Request, Response
from pydantic import WithJsonSchema

from beneath.http.auth import authenticate
from beneath.http.core.routing import ApiRoute, Handler
from beneath.http.core.schemas import Matching
from beneath.http.services import services_of
from services.idempotency.service import Answer

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotent-Replayed"
_PATTERN: Final = r"^[!-~]{1,255}$"
_KEPT_HEADERS: Final = ("content-type", "etag", "location")


async def _declared(
    idempotency_key: Annotated[
        str | None,
        Header(
            description="A text of your choice, new for each request. A request repeated with the same key within 24 "
            "hours is not carried out again: the first response is returned, with `Idempotent-Replayed: true`.",
            examples=["5f0c1f4e-8a52-4b3e-9d0e-0d5d0b0d6c1b"],
        ),
        Matching(_PATTERN, "expected 1 to 255 visible ASCII characters"),
        WithJsonSchema({"type": "string", "pattern": _PATTERN}),
    ] = None,
) -> None:
    """Validate the header; its declaration is part of the API's description."""


KEYED: Final = [Depends(_declared)]
"""The `dependencies` of a route that accepts the header."""


class IdempotentRoute(ApiRoute):
    """A route that carries out a request with `Idempotency-Key` once per user and key, and repeats its response."""

    keep: ClassVar[bool] = True

    async def carry_out(self, request: Request, handle: Handler) -> Response:
        key = request.headers.get(HEADER)
        if key is None or request.method != "POST" or not _is_well_formed(key):
            return await handle(request)
        return await self._once(request, key, handle)

    async def _once(self, request: Request, key: str, handle: Handler) -> Response:
        services = await services_of(request)
        caller = await authenticate(request)
        # The secret is part of the fingerprint: a secret with fewer scopes must not get the response of another.
        asked = b"\0".join([request.url.path.encode(), caller.secret_id.bytes, await request.body()])

        async def work() -> Answer:
            response = await handle(request)
            headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
            return Answer(status=response.status_code, headers=headers, body=bytes(response.body).decode())

        answer = await services.idempotency.answer(caller.user_id, key, asked, work, keep=self.keep)
        replayed = {REPLAYED: "true"} if answer.replayed else {}
        return Response(answer.body, answer.status, {**answer.headers, **replayed})


class IdempotentSecretRoute(IdempotentRoute):
    """An idempotent route whose responses contain a secret: they are not stored, and a repeated request gets 409."""

    keep = False


def _is_well_formed(key: str) -> bool:
    return 1 <= len(key) <= 255 and all("!" <= letter <= "~" for letter in key)  # noqa: PLR2004 - see _PATTERN
