"""Tables and events of each domain; data only.

Importing this package makes every table known to `Base.metadata`, which the migrations are compared with.
"""

from models import audit, idempotency, organization, project, secret, user
from models.base import Base

__all__ = ["Base", "audit", "idempotency", "organization", "project", "secret", "user"]
