"""The HTTP routes of organizations, projects, members and invites."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.example.services.inviting import newest_token
from tests.http.conftest import Api, Caller, problem
from tests.http.operations import Operation, operations


async def joined(api: Api, owner: Caller, organization: str, name: str, role: str) -> Caller:
    """Sign up a user, invite the user to the organization, and accept the invite."""
    email = f"{name}@example.com"
    other = await api.sign_up(email, name)
    path = f"/v1/organizations/{organization}/invites"
    assert (await owner("POST", path, json={"email": email, "role": role})).status_code == 201
    await api.domain.kit.drain()
    token = newest_token(api.domain.mail.to(email))
    assert (await other("POST", "/v1/invites/accept", json={"token": token})).status_code == 200
    return other


async def test_an_organization_is_created_shown_and_renamed(api: Api) -> None:
    ada = await api.sign_up()
    made = await ada("POST", "/v1/organizations", json={"name": "Engines"})
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    path = made.headers["location"]
    shown = await ada("GET", path)
    assert (shown.json(), shown.headers["etag"]) == (made.json(), '"1"')
    renamed = await ada("PATCH", path, json={"name": "Looms"}, headers={"If-Match": '"1"'})
    assert (renamed.json()["name"], renamed.headers["etag"]) == ("Looms", '"2"')
    problem(await ada("PATCH", path, json={"name": "Mills"}, headers={"If-Match": '"1"'}), 412, "changed")
    assert (await ada("PATCH", path, json={"name": "Mills"}, headers={"If-Match": "*"})).status_code == 200
    for tag in ("1", 'W/"4"', '"4", "5"', '"x"', '"' + "9" * 30 + '"'):
        problem(await ada("PATCH", path, json={"name": "Mills"}, headers={"If-Match": tag}), 412, "changed")


async def test_projects_are_created_changed_and_deleted(api: Api) -> None:
    ada = await api.sign_up()
    path = f"/v1/organizations/{await ada.organization()}/projects"
    made = await ada("POST", path, json={"name": "Engine", "description": "Brass\nand steam"})
    assert made.status_code == 201
    project = made.headers["location"]
    changed = await ada("PATCH", project, json={"description": ""}, headers={"If-Match": made.headers["etag"]})
    assert (changed.json()["name"], changed.json()["description"]) == ("Engine", "")
    problem(await ada("DELETE", project, headers={"If-Match": made.headers["etag"]}), 412, "changed")
    deleted = await ada("DELETE", project, headers={"If-Match": changed.headers["etag"]})
    assert (deleted.status_code, deleted.content) == (204, b"")
    problem(await ada("GET", project), 404, "not-found")


async def test_accepted_invite_creates_a_member(api: Api) -> None:
    ada = await api.sign_up()
    organization = await ada.organization()
    bob = await joined(api, ada, organization, "bob", "admin")
    members = (await bob("GET", f"/v1/organizations/{organization}/members")).json()["items"]
    assert [(each["email"], each["role"]) for each in members] == [
        ("ada@example.com", "owner"),
        ("bob@example.com", "admin"),
    ]
    invites = (await bob("GET", f"/v1/organizations/{organization}/invites")).json()["items"]
    assert [each["status"] for each in invites] == ["accepted"]
    assert "token" not in str(invites)


async def test_conflicts_with_members_and_invites_are_refused(api: Api) -> None:
    ada = await api.sign_up()
    path = f"/v1/organizations/{await ada.organization()}"
    problem(await ada("POST", f"{path}/invites", json={"email": "ada@example.com"}), 409, "already-member")
    await ada("POST", f"{path}/invites", json={"email": "cyd@example.com"})
    problem(await ada("POST", f"{path}/invites", json={"email": "cyd@example.com"}), 409, "already-invited")
    problem(await ada("DELETE", f"{path}/members/{ada.user_id}"), 409, "last-owner")
    problem(await ada("POST", "/v1/invites/accept", json={"token": "x" * 43}), 404, "not-found")


async def test_roles_are_changed_and_members_removed(api: Api) -> None:
    ada = await api.sign_up()
    organization = await ada.organization()
    bob = await joined(api, ada, organization, "bob", "member")
    mine = f"/v1/organizations/{organization}/members/{bob.user_id}"
    problem(await bob("PATCH", mine, json={"role": "owner"}), 403, "not-allowed")
    assert (await ada("PATCH", mine, json={"role": "admin"})).status_code == 204
    problem(await ada("PATCH", mine, json={"role": "king"}), 422, "invalid")
    assert (await bob("DELETE", mine)).status_code == 204
    problem(await bob("GET", f"/v1/organizations/{organization}"), 404, "not-found")
    problem(await ada("DELETE", mine), 404, "not-found")


async def test_an_invite_is_withdrawn(api: Api) -> None:
    ada = await api.sign_up()
    path = f"/v1/organizations/{await ada.organization()}/invites"
    made = (await ada("POST", path, json={"email": "bob@example.com"})).json()
    assert (await ada("DELETE", f"{path}/{made['id']}")).status_code == 204
    problem(await ada("DELETE", f"{path}/{made['id']}"), 404, "not-found")


Make = Callable[[Caller, str], Awaitable[str]]


async def invite_in(owner: Caller, organization: str) -> str:
    made = await owner("POST", f"/v1/organizations/{organization}/invites", json={"email": "bob@example.com"})
    invite_id: str = made.json()["id"]
    return invite_id


async def project_in(owner: Caller, organization: str) -> str:
    project_id: str = (await owner("GET", f"/v1/organizations/{organization}/projects")).json()["items"][0]["id"]
    return project_id


async def member_of(owner: Caller, _organization: str) -> str:
    return owner.user_id


OBJECTS: dict[str, Make] = {"invite_id": invite_in, "project_id": project_in, "user_id": member_of}
"""For each parameter of a path below an organization, how its owner makes or finds such an object in it."""


def on_organizations(api: Api) -> list[Operation]:
    return [each for each in operations(api.app) if "organization_id" in each.objects]


async def ids_of(owner: Caller, within: Sequence[Operation]) -> dict[str, str]:
    """Return the ids of the owner's organization and of an object for each parameter of the operations' paths."""
    organization = await owner.organization()
    needed = {name: str(each) for each in within for name in each.objects if name != "organization_id"}
    for name, operation in needed.items():
        assert name in OBJECTS, f"{operation}: add how {name} is made to OBJECTS in {Path(__file__).name}"
    return {"organization_id": organization, **{name: await OBJECTS[name](owner, organization) for name in needed}}


async def test_no_route_distinguishes_an_inaccessible_organization_from_a_missing_one(api: Api) -> None:
    ada, eve = await api.sign_up(), await api.sign_up("eve@example.com", "Eve")
    found = on_organizations(api)
    assert len(found) >= 13
    ids = await ids_of(ada, found)
    absent = dict.fromkeys(ids, "01a20997-b939-7318-8d0c-000000000000")
    for operation in found:
        answers = [await operation.call(eve, each, {"X-Request-ID": "same"}) for each in (ids, absent)]
        for answer in answers:
            assert answer.status_code == 404, f"{operation} serves an organization of other users: {answer.text}"
            problem(answer, 404, "not-found")
        assert answers[0].content == answers[1].content, str(operation)
        headers = [{name: value for name, value in answer.headers.items() if name != "date"} for answer in answers]
        assert headers[0] == headers[1], str(operation)


async def test_no_route_finds_objects_of_another_organization_through_the_users_own(api: Api) -> None:
    ada, eve = await api.sign_up(), await api.sign_up("eve@example.com", "Eve")
    found = [each for each in on_organizations(api) if len(each.objects) > 1]
    mixed = {**await ids_of(ada, found), "organization_id": await eve.organization()}
    for operation in found:
        answer = await operation.call(eve, mixed, {})
        assert answer.status_code == 404, f"{operation} finds an object of another organization: {answer.text}"
        problem(answer, 404, "not-found")
