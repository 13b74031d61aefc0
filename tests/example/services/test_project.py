"""Tests of projects: changes, versions and access."""

import asyncio

import pytest
from uuid_utils.compat import uuid7

from models.organization import Role
from models.project import ProjectCreated, ProjectDeleted, ProjectUpdated
from services.project.errors import ProjectChanged, ProjectNotFound
from tests.example.services.inviting import join
from tests.services.people import sign_up
from tests.world import World


async def test_member_can_create_and_update_and_admin_can_delete(domain: World) -> None:
    ada, bob = await sign_up(domain, "ada"), await sign_up(domain, "bob")
    made = await domain.organization.create(ada, "Engines")
    await join(domain, ada, made.id, bob, Role.MEMBER)
    project = await domain.project.create(bob, made.id, name="Engine", description="Brass")
    changed = await domain.project.update(bob, made.id, project.id, name="Difference engine")
    assert (changed.name, changed.description, changed.version) == ("Difference engine", "Brass", 2)
    await domain.project.delete(ada, made.id, project.id, expected_version=2)
    with pytest.raises(ProjectNotFound):
        await domain.project.get(ada, made.id, project.id)
    mine = [event for event in domain.kit.all_published if getattr(event, "project_id", None) == project.id]
    assert [type(event) for event in mine] == [ProjectCreated, ProjectUpdated, ProjectDeleted]


async def test_update_without_changes_publishes_no_event(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    project = await domain.project.create(ada, made.id, name="Engine")
    assert (await domain.project.update(ada, made.id, project.id, name="Engine")).version == 1
    assert domain.kit.published(ProjectUpdated) == []


async def test_only_one_concurrent_update_of_a_version_succeeds(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    project = await domain.project.create(ada, made.id, name="Engine")
    tries = [
        domain.project.update(ada, made.id, project.id, name=f"Engine {number}", expected_version=1)
        for number in range(3)
    ]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["Project", "ProjectChanged", "ProjectChanged"]


async def test_a_project_is_found_only_in_its_own_organization(domain: World) -> None:
    ada, eve = await sign_up(domain, "ada"), await sign_up(domain, "eve")
    made = await domain.organization.create(ada, "Engines")
    project = await domain.project.create(ada, made.id, name="Engine")
    hers = (await domain.organization.list_organizations(eve))[0]
    for absent in (project.id, uuid7()):
        for call in (
            domain.project.get(eve, hers.id, absent),
            domain.project.update(eve, hers.id, absent, name="Mine"),
            domain.project.delete(eve, hers.id, absent),
        ):
            with pytest.raises(ProjectNotFound):
                await call


async def test_delete_with_a_stale_version_is_refused(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    made = await domain.organization.create(ada, "Engines")
    project = await domain.project.create(ada, made.id, name="Engine")
    with pytest.raises(ProjectChanged):
        await domain.project.delete(ada, made.id, project.id, expected_version=2)
    assert (await domain.project.get(ada, made.id, project.id)).version == 1
