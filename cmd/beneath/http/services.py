"""The services that the routes use, as a dependency of FastAPI."""

from typing import Annotated, Protocol

from fastapi import Depends, Request

from services.audit.service import AuditService
from services.idempotency.service import IdempotencyService
from services.organization.service import OrganizationService
from services.project.service import ProjectService
from services.secret.service import SecretService
from services.user.service import UserService


class Services(Protocol):
    """The services that have routes, as read-only attributes."""

    @property
    def user(self) -> UserService:
        """The `UserService`."""
        ...

    @property
    def organization(self) -> OrganizationService:
        """The `OrganizationService`."""
        ...

    @property
    def project(self) -> ProjectService:
        """The `ProjectService`."""
        ...

    @property
    def secret(self) -> SecretService:
        """The `SecretService`."""
        ...

    @property
    def audit(self) -> AuditService:
        """The `AuditService`."""
        ...

    @property
    def idempotency(self) -> IdempotencyService:
        """The `IdempotencyService`."""
        ...


async def services_of(request: Request) -> Services:
    """Return the services that `create_app` was called with."""
    services: Services = request.app.state.services
    return services


Using = Annotated[Services, Depends(services_of)]
