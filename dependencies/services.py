"""The list of services. To add one, add it to `Services`, to `AllServices`, and to the provider `all`."""

from dataclasses import dataclass

from dependency_injector.providers import ThreadSafeSingleton

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


class Services:
    """The providers: one for each service, and `all`."""

    def __init__(self, infra: Infra) -> None:
        self.secret = ThreadSafeSingleton(SecretService, bus=infra.bus, db=infra.db, clock=infra.clock)
        self.user = ThreadSafeSingleton(UserService, bus=infra.bus, db=infra.db, clock=infra.clock, secrets=self.secret)
        self.organization = ThreadSafeSingleton(
            OrganizationService,
            bus=infra.bus,
            db=infra.db,
            clock=infra.clock,
            invite_lifetime=infra.settings.provided.organization.invite_lifetime,
            max_invites=infra.settings.provided.organization.max_invites,
        )
        self.project = ThreadSafeSingleton(
            ProjectService, bus=infra.bus, db=infra.db, clock=infra.clock, access=self.organization
        )
        self.notification = ThreadSafeSingleton(
            NotificationService, bus=infra.bus, mailer=infra.mailer, invites=self.organization
        )
        self.audit = ThreadSafeSingleton(AuditService, bus=infra.bus, db=infra.db, access=self.organization)

        self.idempotency = ThreadSafeSingleton(IdempotencyService, db=infra.db, clock=infra.clock)

        self.all = ThreadSafeSingleton(
            AllServices,
            secret=self.secret,
            user=self.user,
            organization=self.organization,
            project=self.project,
            notification=self.notification,
            audit=self.audit,
            idempotency=self.idempotency,
        )
