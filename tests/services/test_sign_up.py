"""Tests of signing up, which creates a user with an organization, a project and a secret."""

import asyncio

import pytest
from sqlalchemy import func, select

from infra.db import Database
from models import Base
from models.email import InvalidEmail
from models.name import normalise_name
from models.organization import OrganizationCreated, Role
from models.project import ProjectCreated
from models.secret import Scope
from models.user import UserCreated
from services.secret.errors import InvalidSecret
from services.user.errors import EmailTaken
from tests.world import World


async def rows(db: Database) -> dict[str, int]:
    """Return the number of rows of each table that is not empty."""
    async with db.read() as session:
        counts = {
            table.name: await session.scalar(select(func.count()).select_from(table))
            for table in Base.metadata.sorted_tables
        }
    return {name: count for name, count in counts.items() if count}


async def test_sign_up_creates_user_organization_project_and_secret(domain: World) -> None:
    made = await domain.user.sign_up("ada@example.com", "Ada")
    organizations = await domain.organization.list_organizations(made.user.id)
    projects = await domain.project.list_projects(made.user.id, organizations[0].id)
    members = await domain.organization.list_members(made.user.id, organizations[0].id)
    assert [(each.name, each.personal) for each in organizations] == [("Ada's organization", True)]
    assert [each.name for each in projects] == ["Starter project"]
    assert [(each.email, each.role) for each in members] == [("ada@example.com", Role.OWNER)]
    assert (await domain.secret.authenticate(made.secret)).user_id == made.user.id


async def test_the_first_secret_has_every_scope(domain: World) -> None:
    made = await domain.user.sign_up("ada@example.com", "Ada")
    assert (await domain.secret.authenticate(made.secret)).scopes == frozenset(Scope)


async def test_sign_up_publishes_events_in_causal_order(domain: World) -> None:
    await domain.user.sign_up("ada@example.com", "Ada")
    assert [type(event) for event in domain.kit.all_published] == [UserCreated, OrganizationCreated, ProjectCreated]


async def test_failed_sign_up_leaves_neither_rows_nor_events(domain: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_user_id: object) -> str:
        raise RuntimeError("no secret today")

    monkeypatch.setattr(domain.secret, "issue_first", fail)
    with pytest.raises(RuntimeError, match="no secret today"):
        await domain.user.sign_up("ada@example.com", "Ada")
    assert await rows(domain.db) == {}
    assert domain.kit.all_published == ()
    assert await domain.kit.drain() == 0


async def test_sign_up_with_a_taken_email_stores_nothing(domain: World) -> None:
    await domain.user.sign_up("ada@example.com", "Ada")
    before = await rows(domain.db)
    with pytest.raises(EmailTaken):
        await domain.user.sign_up(" ADA@Example.COM ", "Another Ada")
    assert await rows(domain.db) == before


async def test_only_one_concurrent_sign_up_with_an_email_succeeds(domain: World) -> None:
    tries = [domain.user.sign_up("ada@example.com", f"Ada {number}") for number in range(5)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["EmailTaken"] * 4 + ["SignUp"]
    assert (await rows(domain.db))["organizations"] == 1


@pytest.mark.parametrize(
    "email", ["", "ada", "ada@", "@example.com", "a b@example.com", "ada@exa mple.com", "a@b\n.de", "ä@example.com"]
)
async def test_sign_up_refuses_an_invalid_email(domain: World, email: str) -> None:
    with pytest.raises(InvalidEmail):
        await domain.user.sign_up(email, "Ada")


async def test_secrets_are_stored_hashed(domain: World) -> None:
    made = await domain.user.sign_up("ada@example.com", "Ada")
    await domain.kit.drain()
    path = domain.db.path
    assert path is not None
    stored = b"".join(file.read_bytes() for file in path.parent.glob("beneath.db*"))
    assert made.secret.encode()[12:] not in stored
    with pytest.raises(InvalidSecret):
        await domain.secret.authenticate(made.secret[:-1] + "~")


async def test_sign_up_sends_a_welcome_mail(domain: World) -> None:
    await domain.user.sign_up("ada@example.com", "Ada")
    assert domain.mail.sent == []
    await domain.kit.drain()
    assert [message.subject for message in domain.mail.to("ada@example.com")] == ["Welcome"]
    assert "Ada" in domain.mail.sent[0].text


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
