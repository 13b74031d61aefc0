"""Tables and events of each domain; data only. It imports no other package of the project but `infra`.

Importing this package registers every table in `Base.metadata`, with which a test compares the migrations.
"""

from models import audit, idempotency, organization, project, secret, user
from models.base import Base

__all__ = ["Base", "audit", "idempotency", "organization", "project", "secret", "user"]
