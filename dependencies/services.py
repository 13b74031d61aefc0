"""The list of services. To add one, add it to `Services`, to `AllServices`, and to the provider `all`."""

from dataclasses import dataclass
from typing import cast

from dependency_injector.containers import DeclarativeContainer
from dependency_injector.providers import DependenciesContainer, ThreadSafeSingleton

from dependencies.infra import Infra
from services.audit.service import AuditService
from services.idempotency.service import IdempotencyService
from services.notification.service import NotificationService
from services.organization.service import OrganizationService
from services.project.service import ProjectService
from services.secret.service import SecretService
from services.user.service import UserService


@dataclass(frozen=True, slots=True, kw_only=True)
class AllServices:
    """All services of the application; constructing them registers all listeners."""

    secret: SecretService
    user: UserService
    organization: OrganizationService
    project: ProjectService
    notification: NotificationService
    audit: AuditService
    idempotency: IdempotencyService


class Services(DeclarativeContainer):
    """The providers: one for each service, and `all`."""

    infra = cast("Infra", DependenciesContainer())  # so that the names and types of its providers are checked

    secret = ThreadSafeSingleton(SecretService, bus=infra.bus, db=infra.db, clock=infra.clock)
    user = ThreadSafeSingleton(UserService, bus=infra.bus, db=infra.db, clock=infra.clock, secrets=secret)
    organization = ThreadSafeSingleton(
        OrganizationService,
        bus=infra.bus,
        db=infra.db,
        clock=infra.clock,
        invite_lifetime=infra.settings.provided.organization.invite_lifetime,
        max_invites=infra.settings.provided.organization.max_invites,
    )
    project = ThreadSafeSingleton(ProjectService, bus=infra.bus, db=infra.db, clock=infra.clock, access=organization)
    notification = ThreadSafeSingleton(NotificationService, bus=infra.bus, mailer=infra.mailer, invites=organization)
    audit = ThreadSafeSingleton(AuditService, bus=infra.bus, db=infra.db, access=organization)

    idempotency = ThreadSafeSingleton(IdempotencyService, db=infra.db, clock=infra.clock)

    all = ThreadSafeSingleton(
        AllServices,
        secret=secret,
        user=user,
        organization=organization,
        project=project,
        notification=notification,
        audit=audit,
        idempotency=idempotency,
    )
