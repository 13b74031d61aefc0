"""Commands beside a running application."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.application import Installation, Running
from tests.e2e.processes import Processes, until
from tests.stacks import chosen

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

WELCOME = "notification.send_welcome_email"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, Running]]:
    folder = tmp_path_factory.mktemp("house")
    with chosen().place(folder) as place, Processes() as processes:
        installation = Installation(processes, folder, place)
        running = installation.start("all")
        yield installation, running
        running.stop()


def test_an_event_is_published_from_the_command_line(house: tuple[Installation, Running]) -> None:
    installation, running = house
    eve = running.sign_up("eve@example.com")
    [organization] = eve.items("/v1/organizations")
    user = eve.request("GET", "/v1/me").json()
    fields = {"organization_id": organization["id"], "actor_id": user["id"], "name": "Evil"}
    answer = installation.run("bus", "publish", "OrganizationUpdated", json.dumps(fields))
    assert answer == "published OrganizationUpdated"
    journal = f"/v1/organizations/{organization['id']}/audit"
    until(lambda: len(eve.items(journal)) == 3, "it is in the journal")
    assert [each["event"] for each in eve.items(journal)][2] == "OrganizationUpdated"


def test_pause_affects_one_listener_until_it_is_resumed(house: tuple[Installation, Running]) -> None:
    installation, running = house
    installation.run("bus", "pause", WELCOME)
    ada = running.sign_up("ada@example.com")
    [organization] = ada.items("/v1/organizations")
    until(lambda: len(ada.items(f"/v1/organizations/{organization['id']}/audit")) == 2, "the others go on")
    row = installation.stats(WELCOME)
    assert (row["paused"], row["ready"], row["workers"]) == (True, 1, 1)
    assert installation.mails_to("ada@example.com") == []

    installation.run("bus", "resume", WELCOME)
    until(lambda: installation.mails_to("ada@example.com"), "the mail is sent")
