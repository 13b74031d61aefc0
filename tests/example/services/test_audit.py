"""Tests of the audit journal of organizations."""

from models.organization import Role
from tests.example.services.inviting import INVITE_LIFETIME, invite, join
from tests.services.people import sign_up
from tests.world import World


async def test_journal_lists_all_events_of_an_organization_in_order(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    await join(domain, ada, made.id, bob, Role.MEMBER)
    await domain.organization.change_role(ada, made.id, bob, Role.ADMIN)
    await domain.organization.rename(bob, made.id, "Looms")
    project = await domain.project.create(bob, made.id, name="Loom")
    await domain.project.update(bob, made.id, project.id, description="Jacquard")
    await domain.project.delete(bob, made.id, project.id)
    await invite(domain, ada, made.id, "cyd")
    await domain.organization.remove_member(bob, made.id, bob)
    await domain.kit.advance(seconds=INVITE_LIFETIME)
    entries = await domain.audit.list_entries(ada, made.id)
    assert [each.event for each in entries] == [
        "OrganizationCreated",
        "ProjectCreated",
        "MemberInvited",
        "MemberJoined",
        "MemberUpdated",
        "OrganizationUpdated",
        "ProjectCreated",
        "ProjectUpdated",
        "ProjectDeleted",
        "MemberInvited",
        "MemberLeft",
        "InviteExpired",
    ]
    assert [each.sequence for each in entries] == list(range(1, 13))
    assert [each.actor_id for each in entries if each.event == "InviteExpired"] == [None]
    assert domain.kit.failures == []


async def test_journal_sequence_starts_at_one_for_each_organization(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = [await domain.organization.create(ada, name) for name in ("Engines", "Looms")]
    await domain.kit.drain()
    for each in made:
        entries = await domain.audit.list_entries(ada, each.id)
        assert [entry.sequence for entry in entries] == [1, 2]


async def test_journal_is_paginated(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    await domain.kit.drain()
    organization = (await domain.organization.list_organizations(ada))[0]
    entries = await domain.audit.list_entries(ada, organization.id, after=1, limit=1)
    assert [each.event for each in entries] == ["ProjectCreated"]
