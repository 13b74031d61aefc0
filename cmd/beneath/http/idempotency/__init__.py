"""`Idempotency-Key` on POST: the route class, and the problems. It has no routes of its own."""

from beneath.http.core.domain import Domain
from beneath.http.idempotency.problems import PROBLEMS

DOMAIN = Domain(problems=PROBLEMS)
