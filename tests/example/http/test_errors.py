"""Errors of the routes of organizations."""

import pytest
from uuid_utils.compat import uuid7

from tests.http.conftest import Api, problem


async def test_malformed_id_is_refused(api: Api) -> None:
    ada = await api.sign_up()
    problem(await ada("GET", "/v1/organizations/1/projects"), 422, "invalid")


@pytest.mark.parametrize("part", ["", "/projects", "/audit", "/members", "/invites"])
async def test_inaccessible_organization_is_reported_as_not_found(api: Api, part: str) -> None:
    eve, ada = await api.sign_up("eve@example.com", "Eve"), await api.sign_up()
    same = {"X-Request-ID": "same"}
    foreign = await eve("GET", f"/v1/organizations/{await ada.organization()}{part}", headers=same)
    absent = await eve("GET", f"/v1/organizations/{uuid7()}{part}", headers=same)
    problem(foreign, 404, "not-found")
    assert foreign.json() == absent.json()
