"""Bodies and cursors of the routes of the example."""

import pytest

from tests.http.conftest import Api, problem


@pytest.mark.parametrize("name", ["\u200b", "\u3164", "A\u202eda", "\u0301", "A\ue000da"])
async def test_invisible_or_misleading_name_is_refused_everywhere(api: Api, name: str) -> None:
    ada = await api.sign_up()
    organization = f"/v1/organizations/{await ada.organization()}"
    calls = [
        ("POST", "/v1/users", {"email": "eve@example.com", "name": name}),
        ("PATCH", "/v1/me", {"name": name}),
        ("POST", "/v1/organizations", {"name": name}),
        ("PATCH", organization, {"name": name}),
        ("POST", f"{organization}/projects", {"name": name}),
        ("POST", "/v1/secrets", {"name": name, "scopes": ["read"]}),
    ]
    for method, path, body in calls:
        problem(await ada(method, path, json=body), 422, "invalid")


async def test_separators_in_strings_are_not_counted(api: Api) -> None:
    ada = await api.sign_up()
    path = f"/v1/organizations/{await ada.organization()}/projects"
    description = ',[{"\\' * 400
    answer = await ada("POST", path, json={"name": "Loom", "description": description})
    assert (answer.status_code, answer.json()["description"]) == (201, description)


@pytest.mark.parametrize("cursor", ["AAAAAAAAAAA", "_________w8", "__________8", "f_________8", "AAAAAIAAAAA"])
async def test_tampered_number_in_a_cursor_causes_no_server_error(api: Api, cursor: str) -> None:
    ada = await api.sign_up()
    path = f"/v1/organizations/{await ada.organization()}/audit"
    assert (await ada("GET", f"{path}?cursor={cursor}")).status_code in {200, 422}
