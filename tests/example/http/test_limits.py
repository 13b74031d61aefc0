"""Rate limits of invites, by address and by user."""

import pytest

from beneath.http.app import HttpOptions
from tests.example.services.inviting import MAX_INVITES
from tests.http.conftest import Api, Caller, problem


async def invite(caller: Caller, organization: str, name: str) -> int:
    path = f"/v1/organizations/{organization}/invites"
    return (await caller("POST", path, json={"email": f"{name}@example.com"})).status_code


class TestInvites:
    @pytest.fixture
    def options(self) -> HttpOptions:
        return HttpOptions(max_invites=2)

    async def test_invites_from_one_address_are_limited_over_all_users(self, api: Api) -> None:
        ada, eve = await api.sign_up(), await api.sign_up("eve@example.com", "Eve")
        assert await invite(ada, await ada.organization(), "one") == 201
        assert await invite(eve, await eve.organization(), "two") == 201
        assert await invite(eve, await eve.organization(), "three") == 429


async def test_invites_of_one_user_are_limited_over_all_organizations(api: Api) -> None:
    ada, eve = await api.sign_up(), await api.sign_up("eve@example.com", "Eve")
    first = await ada.organization()
    second = (await ada("POST", "/v1/organizations", json={"name": "Looms"})).json()["id"]
    codes = [await invite(ada, (first, second)[number % 2], f"n{number}") for number in range(MAX_INVITES + 1)]
    assert codes == [201] * MAX_INVITES + [429]
    answer = await ada("POST", f"/v1/organizations/{first}/invites", json={"email": "more@example.com"})
    problem(answer, 429, "too-many-requests")
    assert 3500 < int(answer.headers["retry-after"]) <= 3600
    assert await invite(eve, await eve.organization(), "hers") == 201
    await api.domain.kit.advance(hours=1)
    assert await invite(ada, first, "more") == 201
