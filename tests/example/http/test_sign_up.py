"""The effects of a sign-up, by HTTP."""

from tests.http.conftest import Api


async def test_sign_up_creates_an_organization_and_a_project_at_once(api: Api) -> None:
    ada = await api.sign_up()
    organizations = (await ada("GET", "/v1/organizations")).json()
    projects = (await ada("GET", f"/v1/organizations/{organizations['items'][0]['id']}/projects")).json()
    assert [each["name"] for each in organizations["items"]] == ["Ada's organization"]
    assert [each["name"] for each in projects["items"]] == ["Starter project"]
    assert organizations["next"] is projects["next"] is None


async def test_journal_lists_created_objects_once_the_events_are_handled(api: Api) -> None:
    ada = await api.sign_up()
    path = f"/v1/organizations/{await ada.organization()}/audit"
    assert (await ada("GET", path)).json() == {"items": [], "next": None}
    await api.domain.kit.drain()
    entries = (await ada("GET", path)).json()["items"]
    assert [(each["sequence"], each["event"]) for each in entries] == [
        (1, "OrganizationCreated"),
        (2, "ProjectCreated"),
    ]
    assert all(each["at"] and each["actor_id"] == ada.user_id for each in entries)


async def test_request_id_is_the_correlation_id_of_every_event_of_a_sign_up(api: Api) -> None:
    seen: list[str | None] = []
    api.domain.kit.bus.observe(lambda outgoing: seen.append(outgoing.correlation_id))
    await api.client.post(
        "/v1/users", json={"email": "ada@example.com", "name": "Ada"}, headers={"X-Request-ID": "r-1"}
    )
    assert len(seen) >= 3
    assert set(seen) == {"r-1"}
