"""Organizations, their members and invites."""

from beneath.http.core.domain import Domain
from beneath.http.organizations import invites, members, routes
from beneath.http.organizations.problems import PROBLEMS

DOMAIN = Domain(routes.router, members.router, invites.router, problems=PROBLEMS)
