"""Concurrent changes of organizations."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from models.organization import InviteStatus, Role
from services.organization.errors import (
    AlreadyMember,
    InviteNotFound,
    LastOwner,
    NotAllowed,
    OrganizationError,
    OrganizationNotFound,
    TooManyInvites,
)
from tests import postgres_servers
from tests.example.services.inviting import MAX_INVITES, invite, join
from tests.services.people import email, sign_up
from tests.world import World, migrate, world_at

pytestmark = pytest.mark.timeout(180)

ROUNDS = range(6)
"""Rounds of each test; the calls of odd rounds begin in reverse order."""


@pytest.fixture
async def domain() -> AsyncIterator[World]:
    server = postgres_servers.shared()
    template = await server.template("template_domain", migrate)
    async with server.database(template) as url, world_at(url) as built:
        yield built


async def owners(domain: World) -> tuple[UUID, UUID, UUID]:
    """Create an organization with two owners; return the ids of the organization and the owners."""
    ada, bob = await sign_up(domain, f"ada{uuid7()}"), await sign_up(domain, f"bob{uuid7()}")
    made = await domain.organization.create(ada, "Engines")
    await join(domain, ada, made.id, bob, Role.OWNER)
    return made.id, ada, bob


async def members(domain: World, actor: UUID, organization: UUID) -> dict[UUID, Role]:
    return {each.user_id: each.role for each in await domain.organization.list_members(actor, organization)}


async def test_acceptance_concurrent_with_inviter_removal_precedes_the_removal_or_fails(domain: World) -> None:
    accepted = 0
    for number in ROUNDS:
        made, ada, bob = await owners(domain)
        spare = await sign_up(domain, f"spare{number}")
        token = await invite(domain, bob, made, f"spare{number}", Role.OWNER)
        calls = [
            domain.organization.remove_member(ada, made, bob),
            domain.organization.accept_invite(spare, token),
        ]
        outcomes = await asyncio.gather(*(reversed(calls) if number % 2 else calls), return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, BaseException)]
        assert all(isinstance(each, InviteNotFound) for each in refused), refused
        found = await members(domain, ada, made)
        assert bob not in found
        assert (spare in found) is not bool(refused)
        accepted += spare in found
        with pytest.raises(InviteNotFound):
            await domain.organization.accept_invite(bob, token)
    assert accepted < len(ROUNDS), "some came after the removal"


async def test_one_owner_remains_when_two_owners_remove_each_other(domain: World) -> None:
    for _ in ROUNDS:
        made, ada, bob = await owners(domain)
        outcomes = await asyncio.gather(
            domain.organization.remove_member(ada, made, bob),
            domain.organization.remove_member(bob, made, ada),
            return_exceptions=True,
        )
        assert [type(each) for each in outcomes if each is not None] == [OrganizationNotFound]
        left = ada if outcomes[0] is None else bob
        assert await members(domain, left, made) == {left: Role.OWNER}


async def test_one_owner_remains_when_two_owners_step_down_at_once(domain: World) -> None:
    for _ in ROUNDS:
        made, ada, bob = await owners(domain)
        outcomes = await asyncio.gather(
            *(domain.organization.change_role(each, made, each, Role.MEMBER) for each in (ada, bob)),
            return_exceptions=True,
        )
        assert [type(each) for each in outcomes if each is not None] == [LastOwner]
        assert sorted((await members(domain, ada, made)).values()) == [Role.MEMBER, Role.OWNER]


async def test_invite_concurrent_with_demotion_of_its_inviter_does_not_stay_open(domain: World) -> None:
    for number in ROUNDS:
        made, ada, bob = await owners(domain)
        calls = [
            domain.organization.change_role(ada, made, bob, Role.MEMBER),
            domain.organization.invite(bob, made, email=email("spare"), role=Role.OWNER),
        ]
        outcomes = await asyncio.gather(*(reversed(calls) if number % 2 else calls), return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, BaseException)]
        assert all(isinstance(each, NotAllowed) for each in refused), refused
        invites = await domain.organization.list_invites(ada, made)
        assert not [each for each in invites if each.status is InviteStatus.PENDING]


async def test_user_accepting_two_invites_at_once_joins_once(domain: World) -> None:
    for number in ROUNDS:
        made, ada, _ = await owners(domain)
        cyd = await sign_up(domain, f"cyd{number}")
        tokens = [await invite(domain, ada, made, f"to{number}-{each}") for each in range(2)]
        outcomes = await asyncio.gather(
            *(domain.organization.accept_invite(cyd, token) for token in tokens), return_exceptions=True
        )
        assert [type(each) for each in outcomes if isinstance(each, BaseException)] == [AlreadyMember]


async def test_concurrent_invites_to_several_organizations_share_one_limit(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = [await domain.organization.create(ada, f"Engines {number}") for number in range(4)]
    calls = [
        domain.organization.invite(ada, made[number % 4].id, email=email(f"n{number}"))
        for number in range(MAX_INVITES + 12)
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, OrganizationError)]
    assert len(refused) == 12
    assert all(isinstance(each, TooManyInvites) for each in refused)


async def test_journal_accepts_the_largest_cursor(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    assert await domain.audit.list_entries(ada, made.id, after=2**31 - 1) == []
