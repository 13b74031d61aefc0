"""Tests of secrets: issue, authentication, revocation, and the cache of principals."""

from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from infra.clock import FakeClock
from models.secret import Scope, SecretRevoked
from services.secret.cache import Principal, PrincipalCache
from services.secret.errors import InvalidSecret, ScopeNotGranted, SecretNotFound
from services.secret.service import IssuedSecret
from tests.services.people import sign_up
from tests.world import World


async def issue(domain: World, user: UUID) -> IssuedSecret:
    return await domain.secret.issue(user, name="ci", scopes=[Scope.READ])


async def test_secret_authenticates_its_user_with_its_scopes(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    issued = await issue(domain, ada)
    principal = await domain.secret.authenticate(issued.token)
    assert (principal.user_id, principal.email, principal.scopes) == (ada, "ada@example.com", frozenset({Scope.READ}))
    assert issued.secret.token_hash not in issued.token
    assert issued.token.startswith(issued.secret.hint)


async def test_issued_secrets_are_unique(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    assert len({(await issue(domain, ada)).token for _ in range(10)}) == 10


@pytest.mark.parametrize(
    "token", ["", "bnth_", "bnth_" + "x" * 43, "x" * 48, "bnth_" + "é" * 43, "a\x00b", "x" * 10**6]
)
async def test_token_that_was_never_issued_is_refused(domain: World, token: str) -> None:
    with pytest.raises(InvalidSecret):
        await domain.secret.authenticate(token)


async def test_revoked_secret_is_refused_at_once_despite_the_cache(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    issued = await issue(domain, ada)
    await domain.secret.authenticate(issued.token)
    await domain.secret.revoke(ada, issued.secret.id)
    with pytest.raises(InvalidSecret):
        await domain.secret.authenticate(issued.token)
    assert await domain.secret.list_secrets(ada) == []


async def test_second_revocation_publishes_no_event(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    issued = await issue(domain, ada)
    for _ in range(2):
        await domain.secret.revoke(ada, issued.secret.id)
    assert len(domain.kit.published(SecretRevoked)) == 1


async def test_user_can_revoke_only_own_secrets(domain: World) -> None:
    ada, eve = await sign_up(domain, "ada"), await sign_up(domain, "eve")
    issued = await issue(domain, ada)
    for secret_id in (issued.secret.id, uuid7()):
        with pytest.raises(SecretNotFound):
            await domain.secret.revoke(eve, secret_id)
    assert (await domain.secret.authenticate(issued.token)).user_id == ada


async def test_user_update_is_visible_at_once_despite_the_cache(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    issued = await issue(domain, ada)
    await domain.secret.authenticate(issued.token)
    await domain.user.update(ada, name="Ada L.")
    assert (await domain.secret.authenticate(issued.token)).name == "Ada L."


async def test_secret_cannot_have_scopes_that_its_issuer_lacks(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    with pytest.raises(ScopeNotGranted, match="write"):
        await domain.secret.issue(ada, name="x", scopes=[Scope.READ, Scope.WRITE], within=[Scope.READ])


def principal(name: str) -> Principal:
    return Principal(user_id=uuid7(), email="", name=name, secret_id=uuid7(), scopes=frozenset())


class TestCache:
    async def test_cache_entry_expires_after_30_seconds(self) -> None:
        clock = FakeClock()
        cache = PrincipalCache(clock, 30)
        cache.put("a", principal("Ada"), cache.generation)
        await clock.advance(29.9)
        assert cache.get("a") is not None
        await clock.advance(0.1)
        assert cache.get("a") is None

    def test_principal_read_before_a_drop_is_not_cached(self) -> None:
        cache = PrincipalCache(FakeClock(), 30)
        ada = principal("Ada")
        generation = cache.generation
        cache.drop(lambda each: each.user_id == ada.user_id)
        cache.put("a", ada, generation)
        assert cache.get("a") is None

    def test_drop_removes_only_matching_entries(self) -> None:
        cache = PrincipalCache(FakeClock(), 30)
        ada, eve = principal("Ada"), principal("Eve")
        cache.put("a", ada, cache.generation)
        cache.put("e", eve, cache.generation)
        cache.drop(lambda each: each.secret_id == eve.secret_id)
        assert (cache.get("a"), cache.get("e")) == (ada, None)

    def test_clear_removes_all_entries_and_refuses_earlier_reads(self) -> None:
        cache = PrincipalCache(FakeClock(), 30)
        generation = cache.generation
        cache.put("a", principal("Ada"), generation)
        cache.clear()
        assert cache.get("a") is None
        cache.put("a", principal("Ada"), generation)
        assert cache.get("a") is None

    def test_cache_evicts_entries_beyond_its_capacity(self) -> None:
        cache = PrincipalCache(FakeClock(), 30, capacity=2)
        for name in "abc":
            cache.put(name, principal(name), cache.generation)
        assert [cache.get(name) is not None for name in "abc"] == [False, True, True]
