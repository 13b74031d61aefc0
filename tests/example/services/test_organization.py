"""Tests of organizations, their members and roles."""

import asyncio
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from models.organization import MemberLeft, MemberUpdated, OrganizationCreated, OrganizationUpdated, Role
from models.project import ProjectCreated
from services.organization.errors import (
    LastOwner,
    MemberNotFound,
    NotAllowed,
    OrganizationChanged,
    OrganizationNotFound,
)
from tests.example.services.inviting import join
from tests.services.people import sign_up
from tests.world import World


async def roles(domain: World, actor: UUID, organization: UUID) -> dict[str, Role]:
    members = await domain.organization.list_members(actor, organization)
    return {member.name: member.role for member in members}


async def test_creator_owns_the_new_organization_with_a_starter_project(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    assert await roles(domain, ada, made.id) == {"ada": Role.OWNER}
    assert [each.name for each in await domain.project.list_projects(ada, made.id)] == ["Starter project"]
    assert [event.name for event in domain.kit.published(OrganizationCreated)] == ["ada's organization", "Engines"]
    assert len(domain.kit.published(ProjectCreated)) == 2


async def test_list_has_only_the_users_own_organizations(domain: World) -> None:
    ada, eve = await sign_up(domain, "ada"), await sign_up(domain, "eve")
    made = await domain.organization.create(ada, "Engines")
    assert [each.name for each in await domain.organization.list_organizations(eve)] == ["eve's organization"]
    assert [each.id for each in await domain.organization.list_organizations(ada, limit=1, after=None)] != [made.id]


async def test_user_with_a_long_name_gets_an_organization(domain: World) -> None:
    ada = (await domain.user.create("ada@example.com", "A" * 200)).id
    assert len((await domain.organization.list_organizations(ada))[0].name) == 200


async def test_rename_increments_the_version(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    renamed = await domain.organization.rename(ada, made.id, "Looms", expected_version=1)
    assert (renamed.name, renamed.version) == ("Looms", 2)
    with pytest.raises(OrganizationChanged):
        await domain.organization.rename(ada, made.id, "Mills", expected_version=1)
    assert (await domain.organization.get(ada, made.id)).name == "Looms"
    assert [event.name for event in domain.kit.published(OrganizationUpdated)] == ["Looms"]


async def test_rename_to_the_same_name_publishes_no_event(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    assert (await domain.organization.rename(ada, made.id, "Engines")).version == 1
    assert domain.kit.published(OrganizationUpdated) == []


async def test_non_member_finds_no_organization(domain: World) -> None:
    ada, eve = await sign_up(domain, "ada"), await sign_up(domain, "eve")
    made = await domain.organization.create(ada, "Engines")
    calls = [
        domain.organization.get(eve, made.id),
        domain.organization.rename(eve, made.id, "Mine"),
        domain.organization.list_members(eve, made.id),
        domain.organization.change_role(eve, made.id, ada, Role.MEMBER),
        domain.organization.remove_member(eve, made.id, ada),
        domain.organization.remove_member(eve, made.id, eve),
        domain.organization.invite(eve, made.id, email="eve@example.com"),
        domain.organization.list_invites(eve, made.id),
        domain.organization.withdraw_invite(eve, made.id, uuid7()),
        domain.project.create(eve, made.id, name="Mine"),
        domain.project.list_projects(eve, made.id),
        domain.audit.list_entries(eve, made.id),
    ]
    for call in calls:
        with pytest.raises(OrganizationNotFound):
            await call


async def test_member_cannot_perform_admin_operations(domain: World) -> None:
    ada, bob, cyd = await sign_up(domain, "ada"), await sign_up(domain, "bob"), await sign_up(domain, "cyd")
    made = await domain.organization.create(ada, "Engines")
    for other in (bob, cyd):
        await join(domain, ada, made.id, other, Role.MEMBER)
    calls = [
        domain.organization.rename(bob, made.id, "Mine"),
        domain.organization.change_role(bob, made.id, cyd, Role.ADMIN),
        domain.organization.remove_member(bob, made.id, cyd),
        domain.organization.invite(bob, made.id, email="eve@example.com"),
        domain.organization.list_invites(bob, made.id),
        domain.organization.withdraw_invite(bob, made.id, uuid7()),
        domain.project.delete(bob, made.id, (await domain.project.list_projects(bob, made.id))[0].id),
    ]
    for call in calls:
        with pytest.raises(NotAllowed):
            await call


async def test_admin_can_neither_grant_the_owner_role_nor_remove_owners(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    await join(domain, ada, made.id, bob, Role.ADMIN)
    with pytest.raises(NotAllowed):
        await domain.organization.remove_member(bob, made.id, ada)
    with pytest.raises(NotAllowed):
        await domain.organization.change_role(bob, made.id, bob, Role.OWNER)
    with pytest.raises(NotAllowed):
        await domain.organization.invite(bob, made.id, email="cyd@example.com", role=Role.OWNER)


async def test_roles_change_and_members_leave(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    await join(domain, ada, made.id, bob, Role.MEMBER)
    await domain.organization.change_role(ada, made.id, bob, Role.OWNER)
    assert await roles(domain, bob, made.id) == {"ada": Role.OWNER, "bob": Role.OWNER}
    await domain.organization.remove_member(ada, made.id, ada)
    assert await roles(domain, bob, made.id) == {"bob": Role.OWNER}
    assert [event.role for event in domain.kit.published(MemberUpdated)] == [Role.OWNER]
    assert [event.user_id for event in domain.kit.published(MemberLeft)] == [ada]


async def test_last_owner_can_neither_leave_nor_step_down(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    with pytest.raises(LastOwner):
        await domain.organization.remove_member(ada, made.id, ada)
    with pytest.raises(LastOwner):
        await domain.organization.change_role(ada, made.id, ada, Role.ADMIN)
    assert await roles(domain, ada, made.id) == {"ada": Role.OWNER}


async def test_one_owner_remains_when_two_owners_leave_at_once(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    await join(domain, ada, made.id, bob, Role.OWNER)
    leaving = [domain.organization.remove_member(each, made.id, each) for each in (ada, bob)]
    outcomes = await asyncio.gather(*leaving, return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["LastOwner", "NoneType"]


async def test_non_member_can_be_neither_changed_nor_removed(domain: World) -> None:
    ada, eve = await sign_up(domain, "ada"), await sign_up(domain, "eve")
    made = await domain.organization.create(ada, "Engines")
    with pytest.raises(MemberNotFound):
        await domain.organization.change_role(ada, made.id, eve, Role.ADMIN)
    with pytest.raises(MemberNotFound):
        await domain.organization.remove_member(ada, made.id, eve)
