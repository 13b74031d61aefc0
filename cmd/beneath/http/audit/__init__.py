"""The journal of an organization."""

from beneath.http.audit import routes
from beneath.http.core.domain import Domain

DOMAIN = Domain(routes.router)
