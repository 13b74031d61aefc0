"""Tests of the effects of a sign-up: an organization, a project, a mail and entries in the journal."""

import asyncio

import pytest

from models.name import normalise_name
from models.organization import OrganizationCreated, Role
from models.project import ProjectCreated
from models.user import UserCreated
from tests.services.people import rows
from tests.world import World


async def test_sign_up_creates_user_organization_project_and_secret(domain: World) -> None:
    made = await domain.user.sign_up("ada@example.com", "Ada")
    organizations = await domain.organization.list_organizations(made.user.id)
    projects = await domain.project.list_projects(made.user.id, organizations[0].id)
    members = await domain.organization.list_members(made.user.id, organizations[0].id)
    assert [(each.name, each.personal) for each in organizations] == [("Ada's organization", True)]
    assert [each.name for each in projects] == ["Starter project"]
    assert [(each.email, each.role) for each in members] == [("ada@example.com", Role.OWNER)]
    assert (await domain.secret.authenticate(made.secret)).user_id == made.user.id


async def test_sign_up_publishes_events_in_causal_order(domain: World) -> None:
    await domain.user.sign_up("ada@example.com", "Ada")
    chain = [UserCreated, OrganizationCreated, ProjectCreated]
    assert [type(event) for event in domain.kit.all_published if type(event) in chain] == chain


async def test_only_one_concurrent_sign_up_with_an_email_succeeds(domain: World) -> None:
    tries = [domain.user.sign_up("ada@example.com", f"Ada {number}") for number in range(5)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["EmailTaken"] * 4 + ["SignUp"]
    assert (await rows(domain.db))["organizations"] == 1


async def test_sign_up_sends_a_welcome_mail(domain: World) -> None:
    await domain.user.sign_up("ada@example.com", "Ada")
    assert domain.mail.sent == []
    await domain.kit.drain()
    (welcome,) = [mail for mail in domain.mail.to("ada@example.com") if mail.subject == "Welcome"]
    assert "Ada" in welcome.text


async def test_sign_up_is_journaled_as_organization_then_project(domain: World) -> None:
    made = await domain.user.sign_up("ada@example.com", "Ada")
    await domain.kit.drain()
    organization = (await domain.organization.list_organizations(made.user.id))[0]
    entries = await domain.audit.list_entries(made.user.id, organization.id)
    assert [(each.sequence, each.event) for each in entries] == [(1, "OrganizationCreated"), (2, "ProjectCreated")]
    assert {each.actor_id for each in entries} == {made.user.id}
    assert entries[0].at.timestamp() == domain.kit.clock.time()
    assert entries[1].details["name"] == "Starter project"


@pytest.mark.parametrize("length", range(180, 201))
async def test_organization_of_a_user_with_a_long_name_has_a_valid_name(domain: World, length: int) -> None:
    user = await domain.user.create("ada@example.com", "x" * length)
    [personal] = await domain.organization.list_organizations(user.id)
    assert normalise_name(personal.name) == personal.name
