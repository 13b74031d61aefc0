"""`/docs`: a page that shows the API's description, drawn by the script beside it, without any other host."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_PAGES = {"/docs": "index.html", "/docs/style.css": "style.css", "/docs/script.js": "script.js"}
_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def docs_routes() -> list[Route]:
    """Return the routes of the page, its style and its script."""
    return [_route(path, name) for path, name in _PAGES.items()]


def _route(path: str, name: str) -> Route:
    content = files(__name__).joinpath(name).read_bytes()
    media_type = _MEDIA_TYPES[name.rpartition(".")[2]]

    async def page(_request: Request) -> Response:
        return Response(content, headers={"Content-Security-Policy": _POLICY}, media_type=media_type)

    return Route(path, page)
