"""The HTTP routes of users."""

import pytest

from tests.http.conftest import Api, problem


async def test_sign_up_returns_the_user_and_a_secret(api: Api) -> None:
    answer = await api.client.post("/v1/users", json={"email": "ada@example.com", "name": "Ada"})
    body = answer.json()
    assert answer.status_code == 201
    assert body["user"]["email"] == "ada@example.com"
    assert body["user"]["name"] == "Ada"
    assert set(body["user"]) == {"id", "email", "name", "created_at", "updated_at"}
    assert body["secret"].startswith("bnth_")


async def test_me_returns_the_authenticated_user(api: Api) -> None:
    await api.sign_up("grace@example.com", "Grace")
    ada = await api.sign_up()
    answer = await ada("GET", "/v1/me")
    assert (answer.status_code, answer.headers["etag"]) == (200, '"1"')
    assert answer.json()["id"] == ada.user_id
    assert answer.json()["email"] == "ada@example.com"


async def test_a_taken_email_is_a_conflict(api: Api) -> None:
    await api.sign_up()
    answer = await api.client.post("/v1/users", json={"email": "ADA@example.com", "name": "Eve"})
    problem(answer, 409, "email-taken")


async def test_a_profile_changes_once_per_version(api: Api) -> None:
    ada = await api.sign_up()
    first = await ada("PATCH", "/v1/me", json={"name": "Ada L."}, headers={"If-Match": '"1"'})
    assert (first.status_code, first.headers["etag"], first.json()["name"]) == (200, '"2"', "Ada L.")
    problem(await ada("PATCH", "/v1/me", json={"name": "Eve"}, headers={"If-Match": '"1"'}), 412, "changed")
    assert (await ada("GET", "/v1/me")).json()["name"] == "Ada L."


async def test_empty_change_changes_nothing(api: Api) -> None:
    ada = await api.sign_up()
    answer = await ada("PATCH", "/v1/me", json={})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"1"')


async def test_email_of_another_user_cannot_be_used(api: Api) -> None:
    await api.sign_up("grace@example.com", "Grace")
    ada = await api.sign_up()
    problem(await ada("PATCH", "/v1/me", json={"email": "Grace@example.com"}), 409, "email-taken")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"email": "ada@example.com"}, "body.name"),
        ({"email": "ada", "name": "Ada"}, "body.email"),
        ({"email": 1, "name": "Ada"}, "body.email"),
        ({"email": "ada@example.com", "name": ""}, "body.name"),
        ({"email": "ada@example.com", "name": None}, "body.name"),
        ({"email": "ada@example.com", "name": "A" * 201}, "body.name"),
        ({"email": "ada@example.com", "name": "A\u0000"}, "body.name"),
        ({"email": "ada@example.com", "name": "Ada", "admin": True}, "body.admin"),
        ([], "body"),
        ("text", "body"),
        (None, "body"),
    ],
)
async def test_invalid_fields_are_refused_by_name(api: Api, body: object, where: str) -> None:
    found = problem(await api.client.post("/v1/users", json=body), 422, "invalid")
    assert where in {each["where"] for each in found["errors"]}
    assert where in found["detail"]


async def test_unpaired_surrogate_is_refused(api: Api) -> None:
    body = b'{"email": "ada@example.com", "name": "\\ud800"}'
    answer = await api.client.post("/v1/users", content=body, headers={"Content-Type": "application/json"})
    problem(answer, 422, "invalid")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"email": "ada", "name": "Ada"}, "body.email: expected name@domain, in ASCII"),
        ({"email": " ada@example.com", "name": "Ada"}, "body.email: expected name@domain, in ASCII"),
        ({"email": "ada@example.com\n", "name": "Ada"}, "body.email: expected name@domain, in ASCII"),
        (
            {"email": "ada@example.com", "name": "Ada "},
            "body.name: expected one line that neither begins nor ends with",
        ),
        (
            {"email": "ada@example.com", "name": "A\nda"},
            "body.name: expected one line that neither begins nor ends with",
        ),
        ({"email": "ada@example.com", "nam": "Ada"}, "body.name: Field required; body.nam: Extra inputs"),
    ],
)
async def test_error_messages_are_readable_sentences(api: Api, body: object, detail: str) -> None:
    found = problem(await api.client.post("/v1/users", json=body), 422, "invalid")
    assert found["detail"].startswith(detail)
