"""Projects of an organization."""

from beneath.http.core.domain import Domain
from beneath.http.projects import routes
from beneath.http.projects.problems import PROBLEMS

DOMAIN = Domain(routes.router, problems=PROBLEMS)
