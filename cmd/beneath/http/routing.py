"""The API's routes: first who asks, then what they sent, then the handler."""

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from beneath.http.auth import Bearer
from beneath.http.problems import BAD_REQUEST, MALFORMED_JSON, ProblemError

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ApiRoute(APIRoute):
    """Authenticates before it reads the body, which FastAPI does the other way round, and takes no lenient JSON."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        guards = [each.call for each in self.dependant.dependencies if isinstance(each.call, Bearer)]
        has_body = self.body_field is not None

        async def answer(bare: Request) -> Response:
            request = JsonRequest(bare.scope, bare.receive)
            for guard in guards:
                await guard(request)
            if has_body and await request.body():
                await request.json()
            return await self.carry_out(request, handle)

        return answer

    async def carry_out(self, request: Request, handle: Handler) -> Response:
        """Let `handle` answer a request whose sender is known and whose body is JSON."""
        return await handle(request)


class JsonRequest(Request):
    """A request whose body means the same to everyone who reads it: JSON in UTF-8, no name twice, no NaN."""

    async def body(self) -> bytes:
        try:
            return await super().body()
        except ClientDisconnect:
            raise ProblemError(BAD_REQUEST, "the connection ended before the body did") from None

    async def json(self) -> Any:  # noqa: ANN401 - whatever the client sent
        """Return the body, parsed once; raise `ProblemError`, which says where it is no JSON."""
        if not hasattr(self, "_parsed"):
            self._parsed = _parse(await self.body())
        return self._parsed


class _NotJson(ValueError):
    """Python would read it, JSON does not have it."""


def _parse(body: bytes) -> Any:  # noqa: ANN401 - whatever the client sent
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        detail = f"at byte {error.start}: not UTF-8"
    except json.JSONDecodeError as error:
        detail = f"at character {error.pos}: {error.msg}"
    except _NotJson as error:
        detail = str(error)
    except RecursionError:
        detail = "it is nested too deeply"
    except ValueError:
        detail = "a number in it has too many digits"
    raise ProblemError(MALFORMED_JSON, detail)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise _NotJson(f"{json.dumps(twice[:100])} is there twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise _NotJson(f"{name} is not a JSON value")
