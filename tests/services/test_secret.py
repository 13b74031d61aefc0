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


async def test_a_secret_stands_for_its_user_and_scopes(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    issued = await issue(domain, ada)
    principal = await domain.secret.authenticate(issued.token)
    assert (principal.user_id, principal.email, principal.scopes) == (ada, "ada@example.com", frozenset({Scope.READ}))
    assert issued.secret.token_hash not in issued.token
    assert issued.token.startswith(issued.secret.hint)


async def test_every_secret_is_another(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    assert len({(await issue(domain, ada)).token for _ in range(10)}) == 10


@pytest.mark.parametrize(
    "token", ["", "bnth_", "bnth_" + "x" * 43, "x" * 48, "bnth_" + "é" * 43, "a\x00b", "x" * 10**6]
)
async def test_what_was_never_issued_is_refused(domain: World, token: str) -> None:
    with pytest.raises(InvalidSecret):
        await domain.secret.authenticate(token)


async def test_a_revoked_secret_is_refused_at_once_where_it_was_cached(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    issued = await issue(domain, ada)
    await domain.secret.authenticate(issued.token)
    await domain.secret.revoke(ada, issued.secret.id)
    with pytest.raises(InvalidSecret):
        await domain.secret.authenticate(issued.token)
    assert await domain.secret.list_secrets(ada) == []


async def test_revoking_again_is_no_second_event(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    issued = await issue(domain, ada)
    for _ in range(2):
        await domain.secret.revoke(ada, issued.secret.id)
    assert len(domain.kit.published(SecretRevoked)) == 1


async def test_only_ones_own_can_be_revoked(domain: World) -> None:
    ada, eve = await sign_up(domain, "ada"), await sign_up(domain, "eve")
    issued = await issue(domain, ada)
    for secret_id in (issued.secret.id, uuid7()):
        with pytest.raises(SecretNotFound):
            await domain.secret.revoke(eve, secret_id)
    assert (await domain.secret.authenticate(issued.token)).user_id == ada


async def test_a_change_of_the_user_shows_at_once(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    issued = await issue(domain, ada)
    await domain.secret.authenticate(issued.token)
    await domain.user.update(ada, name="Ada L.")
    assert (await domain.secret.authenticate(issued.token)).name == "Ada L."


async def test_nobody_gets_more_scopes_than_they_hand_on(domain: World) -> None:
    ada = await sign_up(domain, "ada")
    with pytest.raises(ScopeNotGranted, match="write"):
        await domain.secret.issue(ada, name="x", scopes=[Scope.READ, Scope.WRITE], within=[Scope.READ])


def principal(name: str) -> Principal:
    return Principal(user_id=uuid7(), email="", name=name, secret_id=uuid7(), scopes=frozenset())


class TestCache:
    async def test_an_entry_lives_30_seconds(self) -> None:
        clock = FakeClock()
        cache = PrincipalCache(clock, 30)
        cache.put("a", principal("Ada"), cache.generation)
        await clock.advance(29.9)
        assert cache.get("a") is not None
        await clock.advance(0.1)
        assert cache.get("a") is None

    def test_what_was_read_before_a_drop_is_not_kept(self) -> None:
        cache = PrincipalCache(FakeClock(), 30)
        ada = principal("Ada")
        generation = cache.generation
        cache.drop(lambda each: each.user_id == ada.user_id)
        cache.put("a", ada, generation)
        assert cache.get("a") is None

    def test_a_drop_takes_only_what_is_stale(self) -> None:
        cache = PrincipalCache(FakeClock(), 30)
        ada, eve = principal("Ada"), principal("Eve")
        cache.put("a", ada, cache.generation)
        cache.put("e", eve, cache.generation)
        cache.drop(lambda each: each.secret_id == eve.secret_id)
        assert (cache.get("a"), cache.get("e")) == (ada, None)

    def test_a_gap_clears_everything(self) -> None:
        cache = PrincipalCache(FakeClock(), 30)
        generation = cache.generation
        cache.put("a", principal("Ada"), generation)
        cache.clear()
        assert cache.get("a") is None
        cache.put("a", principal("Ada"), generation)
        assert cache.get("a") is None

    def test_it_stays_small(self) -> None:
        cache = PrincipalCache(FakeClock(), 30, capacity=2)
        for name in "abc":
            cache.put(name, principal(name), cache.generation)
        assert [cache.get(name) is not None for name in "abc"] == [False, True, True]
