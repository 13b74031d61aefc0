"""The base class of the API's routes: it checks the secret, then the body, and then calls the handler."""

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from starlette.requests import ClientDisconnect

from beneath.http.core.problems import BAD_REQUEST, INVALID, MALFORMED_JSON, ProblemError, shortened

MAX_VALUES: Final = 1000
"""The largest number of values in a body, nested ones included, and of parameters in a query: each is validated."""

MAX_DEPTH: Final = 32
"""The largest depth of objects and arrays in a body."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


_SEPARATORS: Final = (b",", b"[", b"{")
_QUOTE: Final = ord('"')
_TOKEN: Final = re.compile(rb'[,\[{]|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A separator or a string. An unterminated string matches to the end, so that the search takes linear time."""

_TOO_DEEP: Final = f"objects and arrays are nested more than {MAX_DEPTH} levels deep"


class Guard(SecurityBase, ABC):
    """A dependency that authenticates the request; `ApiRoute` calls it before the body is read."""

    @abstractmethod
    async def __call__(self, request: Request) -> object:
        """Return the caller, or raise `ProblemError`."""


class ApiRoute(APIRoute):
    """A route that authenticates before the body is read (FastAPI does so afterwards), and accepts strict JSON only."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        guards = [each.call for each in self.dependant.dependencies if isinstance(each.call, Guard)]
        has_body = self.body_field is not None

        async def answer(bare: Request) -> Response:
            request = JsonRequest(bare.scope, bare.receive)
            for guard in guards:
                await guard(request)
            if request.scope["query_string"].count(b"&") >= MAX_VALUES:
                raise _too_much("query", f"at most {MAX_VALUES} parameters are accepted")
            if has_body and await request.body():
                await request.json()
            return await self.carry_out(request, handle)

        return answer

    async def carry_out(self, request: Request, handle: Handler) -> Response:
        """Handle a request that is authenticated and whose body is valid JSON."""
        return await handle(request)


class JsonRequest(Request):
    """A request whose body every parser reads the same way: JSON in UTF-8, without duplicate names and NaN."""

    async def body(self) -> bytes:
        try:
            return await super().body()
        except ClientDisconnect:
            raise ProblemError(BAD_REQUEST, "the connection ended before the body was complete") from None

    async def json(self) -> Any:  # noqa: ANN401 - any JSON value
        """Return the body, parsed once; raise `ProblemError` with the position if it is not valid JSON."""
        if not hasattr(self, "_parsed"):
            self._parsed = _parse(await self.body())
        return self._parsed


class _NotJson(ValueError):
    """Python's parser accepts the text, but it is not valid JSON."""


def _parse(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    _require_few_values(body)
    try:
        parsed = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_no_constant)
        _require_shallow(parsed)
    except UnicodeDecodeError as error:
        detail = f"at byte {error.start}: not UTF-8"
    except json.JSONDecodeError as error:
        detail = f"at character {error.pos}: {error.msg}"
    except _NotJson as error:
        detail = str(error)
    except RecursionError:
        detail = _TOO_DEEP
    except ValueError:
        detail = "a number in it has too many digits"
    else:
        return parsed
    raise ProblemError(MALFORMED_JSON, detail)


def _require_few_values(body: bytes) -> None:
    # Checked before parsing: a list of a million small values takes a third of a second to parse.
    if sum(map(body.count, _SEPARATORS)) < MAX_VALUES:
        return
    strings = separators = 0
    for token in _TOKEN.finditer(body):
        is_string = body[token.start()] == _QUOTE
        strings += is_string
        separators += not is_string
        if separators >= MAX_VALUES or strings > 2 * MAX_VALUES:
            raise _too_much("body", f"at most {MAX_VALUES} values, nested ones included, are accepted")


def _require_shallow(parsed: object) -> None:
    level = [parsed]
    for _ in range(MAX_DEPTH + 1):
        containers = [each for each in level if isinstance(each, dict | list)]
        if not containers:
            return
        level = [value for each in containers for value in (each.values() if isinstance(each, dict) else each)]
    raise _NotJson(_TOO_DEEP)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise _NotJson(f"{json.dumps(shortened(twice, 100))} occurs twice in one object")
    return found


def _too_much(where: str, detail: str) -> ProblemError:
    return ProblemError(INVALID, f"{where}: {detail}", errors=[{"where": where, "detail": detail}])


def _no_constant(name: str) -> None:
    raise _NotJson(f"{name} is not a JSON value")
