"""Shared steps of the example's tests: invites, and members that accept them."""

import re
from collections.abc import Sequence
from uuid import UUID

from dependencies.service_settings import OrganizationSettings
from infra.mail import Mail
from models.organization import Role
from tests.services.people import email
from tests.world import World

INVITE_LIFETIME = OrganizationSettings().invite_lifetime
MAX_INVITES = OrganizationSettings().max_invites

TOKEN = re.compile(r"^[A-Za-z0-9_-]{43}$", re.MULTILINE)


async def invite(domain: World, actor: UUID, organization: UUID, name: str, role: Role = Role.MEMBER) -> str:
    """Invite `name`, and return the token from the mail."""
    await domain.organization.invite(actor, organization, email=email(name), role=role)
    await domain.kit.drain()
    return newest_token(domain.mail.to(email(name)))


def newest_token(mails: Sequence[Mail]) -> str:
    """Return the token in the newest mail that has one."""
    return token_in([mail.text for mail in mails if TOKEN.search(mail.text)][-1])


def token_in(text: str) -> str:
    """Return the token, which is alone on a line."""
    found = TOKEN.search(text)
    assert found, text
    return found[0]


async def join(domain: World, actor: UUID, organization: UUID, user: UUID, role: Role) -> None:
    """Make a user a member by an invite that the user accepts."""
    name = (await domain.user.get(user)).name
    await domain.organization.accept_invite(user, await invite(domain, actor, organization, name, role))
