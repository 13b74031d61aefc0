"""What the routes need of the application."""

from typing import Annotated, Protocol

from fastapi import Depends, Request

from services.audit.service import AuditService
from services.idempotency.service import IdempotencyService
from services.organization.service import OrganizationService
from services.project.service import ProjectService
from services.secret.service import SecretService
from services.user.service import UserService


class Services(Protocol):
    """The services that have routes; attributes that nobody sets."""

    @property
    def user(self) -> UserService:
        """See there."""
        ...

    @property
    def organization(self) -> OrganizationService:
        """See there."""
        ...

    @property
    def project(self) -> ProjectService:
        """See there."""
        ...

    @property
    def secret(self) -> SecretService:
        """See there."""
        ...

    @property
    def audit(self) -> AuditService:
        """See there."""
        ...

    @property
    def idempotency(self) -> IdempotencyService:
        """See there."""
        ...


async def services_of(request: Request) -> Services:
    """Return what `create_app` was given."""
    services: Services = request.app.state.services
    return services


Using = Annotated[Services, Depends(services_of)]
