"""API secrets."""

from beneath.http.core.domain import Domain
from beneath.http.secrets import routes
from beneath.http.secrets.problems import PROBLEMS

DOMAIN = Domain(routes.router, problems=PROBLEMS)
