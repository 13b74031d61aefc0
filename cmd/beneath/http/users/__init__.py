"""Sign-up and the user's own profile."""

from beneath.http.core.domain import Domain
from beneath.http.users import routes
from beneath.http.users.problems import PROBLEMS

DOMAIN = Domain(routes.router, problems=PROBLEMS)
