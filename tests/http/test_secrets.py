"""The HTTP routes of secrets, and authentication."""

import pytest

from tests.http.conftest import Api, problem


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Bearer bnth_" + "x" * 43},
        {"Authorization": "Bearer bnth_\u00e9".encode("latin-1")},
    ],
)
async def test_request_without_a_valid_secret_is_refused(api: Api, headers: dict[str, str]) -> None:
    answer = await api.client.get("/v1/me", headers=headers)
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_revoked_secret_is_refused_at_once(api: Api) -> None:
    ada = await api.sign_up()
    assert (await ada("GET", "/v1/me")).status_code == 200
    listed = (await ada("GET", "/v1/secrets")).json()["items"]
    assert [each["hint"] for each in listed] == [ada.secret[:9]]
    assert (await ada("DELETE", f"/v1/secrets/{listed[0]['id']}")).status_code == 204
    problem(await ada("GET", "/v1/me"), 401, "unauthenticated")


async def test_secret_can_create_secrets_only_with_its_own_scopes(api: Api) -> None:
    ada = await api.sign_up()
    limited = (await ada("POST", "/v1/secrets", json={"name": "keys", "scopes": ["secrets"]})).json()
    ada.secret = limited["token"]
    problem(await ada("POST", "/v1/secrets", json={"name": "all", "scopes": ["write"]}), 403, "insufficient-scope")
    answer = await ada("GET", "/v1/me")
    problem(answer, 403, "insufficient-scope")
    assert 'scope="read"' in answer.headers["www-authenticate"]


async def test_read_only_secret_cannot_write(api: Api) -> None:
    ada = await api.sign_up()
    ada.secret = (await ada("POST", "/v1/secrets", json={"name": "ci", "scopes": ["read"]})).json()["token"]
    assert (await ada("GET", "/v1/me")).status_code == 200
    problem(await ada("PATCH", "/v1/me", json={"name": "Mine"}), 403, "insufficient-scope")


async def test_another_users_secret_cannot_be_revoked(api: Api) -> None:
    ada, eve = await api.sign_up(), await api.sign_up("eve@example.com", "Eve")
    secret_id = (await ada("GET", "/v1/secrets")).json()["items"][0]["id"]
    problem(await eve("DELETE", f"/v1/secrets/{secret_id}"), 404, "not-found")
    assert (await ada("GET", "/v1/me")).status_code == 200


@pytest.mark.parametrize("scopes", [[], ["all"], "read", None, [1]])
async def test_unknown_scopes_are_refused(api: Api, scopes: object) -> None:
    ada = await api.sign_up()
    problem(await ada("POST", "/v1/secrets", json={"name": "x", "scopes": scopes}), 422, "invalid")
