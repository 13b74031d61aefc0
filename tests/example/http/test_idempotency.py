"""Idempotency keys of the HTTP API."""

import asyncio
from uuid import UUID

import pytest
from sqlalchemy import delete, select

from models.idempotency import IdempotencyKey
from services.idempotency.service import IdempotencyService
from tests.http.conftest import Api, Caller, problem

KEY = {"Idempotency-Key": "k-1"}


async def names(caller: Caller) -> list[str]:
    return [each["name"] for each in (await caller("GET", "/v1/organizations")).json()["items"]]


async def test_repeated_request_gets_the_same_response(api: Api) -> None:
    ada = await api.sign_up()
    first = await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    again = await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    for name in ("etag", "location", "content-type"):
        assert again.headers[name] == first.headers[name]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert await names(ada) == ["Ada's organization", "Engines"]


async def test_concurrent_requests_with_one_key_are_executed_once(api: Api) -> None:
    ada = await api.sign_up()
    answers = await asyncio.gather(
        *[ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY) for _ in range(5)]
    )
    assert {answer.text for answer in answers} == {answers[0].text}
    assert await names(ada) == ["Ada's organization", "Engines"]


async def test_a_key_belongs_to_one_request(api: Api) -> None:
    ada = await api.sign_up()
    await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    answer = await ada("POST", "/v1/organizations", json={"name": "Looms"}, headers=KEY)
    problem(answer, 409, "idempotency-key-reused")
    path = f"/v1/organizations/{await ada.organization()}/projects"
    problem(await ada("POST", path, json={"name": "Engines"}, headers=KEY), 409, "idempotency-key-reused")


async def test_a_key_belongs_to_one_user(api: Api) -> None:
    ada, eve = await api.sign_up(), await api.sign_up("eve@example.com", "Eve")
    first = await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    other = await eve("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    assert other.status_code == 201
    assert other.json()["id"] != first.json()["id"]


async def test_failed_request_does_not_consume_its_key(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await api.sign_up()

    async def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("half-way")

    with monkeypatch.context() as patch:
        patch.setattr(type(api.domain.project), "_create", fail)
        failed = await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
        problem(failed, 500, "internal")
    assert await names(ada) == ["Ada's organization"]
    assert (await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)).status_code == 201


async def test_refused_request_can_be_corrected_under_its_key(api: Api) -> None:
    ada = await api.sign_up()
    problem(await ada("POST", "/v1/organizations", json={"name": ""}, headers=KEY), 422, "invalid")
    assert (await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)).status_code == 201


async def test_response_with_a_secret_is_not_stored(api: Api) -> None:
    ada = await api.sign_up()
    body = {"name": "ci", "scopes": ["read"]}
    assert (await ada("POST", "/v1/secrets", json=body, headers=KEY)).status_code == 201
    problem(await ada("POST", "/v1/secrets", json=body, headers=KEY), 409, "already-done")
    assert len((await ada("GET", "/v1/secrets")).json()["items"]) == 2


async def test_a_key_is_free_again_after_a_day(api: Api) -> None:
    ada = await api.sign_up()
    await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    api.domain.kit.clock.move_to(api.domain.kit.clock.time() + 86_400)
    again = await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    assert "idempotent-replayed" not in again.headers
    assert await names(ada) == ["Ada's organization", "Engines", "Engines"]


@pytest.mark.parametrize("key", ["a b", "x" * 256, ""])
async def test_malformed_key_is_refused(api: Api, key: str) -> None:
    ada = await api.sign_up()
    answer = await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers={"Idempotency-Key": key})
    problem(answer, 422, "invalid")


async def test_key_does_not_replace_the_secret(api: Api) -> None:
    answer = await api.client.post("/v1/organizations", json={"name": "Engines"}, headers=KEY)
    problem(answer, 401, "unauthenticated")


async def test_a_repeated_invite_is_mailed_once(api: Api) -> None:
    ada = await api.sign_up()
    path = f"/v1/organizations/{await ada.organization()}/invites"
    for _ in range(2):
        answer = await ada("POST", path, json={"email": "bob@example.com"}, headers=KEY)
        assert answer.status_code == 201
    await api.domain.kit.drain()
    assert len(api.domain.mail.to("bob@example.com")) == 1


async def test_expired_key_is_free_before_its_deletion(api: Api) -> None:
    ada, eve = await api.sign_up(), await api.sign_up("eve@example.com", "Eve")
    for number in range(15):
        await eve("POST", "/v1/organizations", json={"name": "Looms"}, headers={"Idempotency-Key": f"k-{number}"})
    await api.domain.kit.advance(seconds=1)
    await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    await api.domain.kit.advance(hours=24)
    answer = await ada("POST", "/v1/organizations", json={"name": "Mills"}, headers=KEY)
    assert (answer.status_code, "idempotent-replayed" in answer.headers) == (201, False)


async def test_key_deleted_during_a_repetition_is_free(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await api.sign_up()
    await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    found = type(api.domain.idempotency)._find

    async def find_too_late(self: IdempotencyService, user_id: UUID, key: str) -> IdempotencyKey | None:
        async with api.domain.db.transaction() as tx:
            await tx.session.execute(delete(IdempotencyKey))
        return await found(self, user_id, key)

    monkeypatch.setattr(type(api.domain.idempotency), "_find", find_too_late)
    answer = await ada("POST", "/v1/organizations", json={"name": "Engines"}, headers=KEY)
    assert (answer.status_code, "idempotent-replayed" in answer.headers) == (201, False)


async def test_request_deletes_at_most_ten_expired_keys(api: Api) -> None:
    ada = await api.sign_up()
    for number in range(25):
        await ada("POST", "/v1/organizations", json={"name": "Looms"}, headers={"Idempotency-Key": f"k-{number}"})
    await api.domain.kit.advance(hours=25)
    left = []
    for number in range(3):
        await ada("POST", "/v1/organizations", json={"name": "Looms"}, headers={"Idempotency-Key": f"new-{number}"})
        async with api.domain.db.read() as session:
            left.append(len((await session.scalars(select(IdempotencyKey))).all()))
    assert left == [16, 7, 3]
