"""What the routes need of the application."""

from typing import Annotated, Protocol

from fastapi import Depends, Request

from services.audit.service import AuditService
from services.organization.service import OrganizationService
from services.project.service import ProjectService
from services.secret.service import SecretService
from services.user.service import UserService


class Services(Protocol):
    """The services that have routes."""

    @property
    def user(self) -> UserService: ...
    @property
    def organization(self) -> OrganizationService: ...
    @property
    def project(self) -> ProjectService: ...
    @property
    def secret(self) -> SecretService: ...
    @property
    def audit(self) -> AuditService: ...


async def services_of(request: Request) -> Services:
    """Return what `create_app` was given."""
    services: Services = request.app.state.services
    return services


Using = Annotated[Services, Depends(services_of)]
