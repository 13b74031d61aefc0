"""Tests of signing up, which creates a user and a secret."""

import pytest

from models.email import InvalidEmail
from models.secret import Scope
from services.secret.errors import InvalidSecret
from services.user.errors import EmailTaken
from tests.services.people import rows
from tests.world import World


async def test_the_first_secret_has_every_scope(domain: World) -> None:
    made = await domain.user.sign_up("ada@example.com", "Ada")
    assert (await domain.secret.authenticate(made.secret)).scopes == frozenset(Scope)


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
