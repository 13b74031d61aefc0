"""Pagination of projects and of the journal."""

from tests.http.conftest import Api, Caller, problem


async def walk(caller: Caller, path: str, limit: int) -> list[list[str]]:
    pages: list[list[str]] = []
    cursor = ""
    while True:
        body = (await caller("GET", f"{path}?limit={limit}{cursor}")).json()
        pages.append([str(each.get("name", each.get("sequence"))) for each in body["items"]])
        if body["next"] is None:
            return pages
        cursor = f"&cursor={body['next']}"


async def test_successive_pages_contain_the_whole_list(api: Api) -> None:
    ada = await api.sign_up()
    path = f"/v1/organizations/{await ada.organization()}/projects"
    for number in range(4):
        assert (await ada("POST", path, json={"name": f"P{number}"})).status_code == 201
    whole = ["Starter project", "P0", "P1", "P2", "P3"]
    assert await walk(ada, path, 2) == [whole[:2], whole[2:4], whole[4:]]
    assert await walk(ada, path, 5) == [whole]


async def test_journal_is_paginated(api: Api) -> None:
    ada = await api.sign_up()
    await api.domain.kit.drain()
    assert await walk(ada, f"/v1/organizations/{await ada.organization()}/audit", 1) == [["1"], ["2"]]


async def test_well_formed_cursor_never_causes_a_server_error(api: Api) -> None:
    ada = await api.sign_up()
    assert (await ada("GET", f"/v1/organizations?cursor={'_' * 22}")).json()["items"] == []
    path = f"/v1/organizations/{await ada.organization()}/audit"
    assert (await ada("GET", f"{path}?cursor={'_' * 11}")).json()["items"] == []
    problem(await ada("GET", f"{path}?cursor={'_' * 22}"), 422, "invalid")
