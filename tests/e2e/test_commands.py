"""Commands beside a running application."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from bus import Bus
from infra.clock import SystemClock
from infra.db import Database
from infra.mq import Failure, Outcome, Settlement, WorkerInfo
from infra.mq.drivers.sql import SqlQueue
from models.base import new_id
from models.user import UserCreated
from tests.e2e.application import Installation, Running
from tests.e2e.processes import Processes, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

WELCOME = "notification.send_welcome_email"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, Running]]:
    """An application that found a dead letter when it started."""
    with Processes() as processes:
        installation = Installation(processes, tmp_path_factory.mktemp("house"))
        installation.run("migrate", "up")
        asyncio.run(give_up(f"sqlite:///{installation.folder}/data/beneath.db"))
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


def test_a_paused_listener_waits_alone_until_it_is_resumed(house: tuple[Installation, Running]) -> None:
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


def test_a_dead_letter_is_listed_and_handled_again_by_the_running_worker(house: tuple[Installation, Running]) -> None:
    installation, _ = house
    [row] = installation.run("bus", "dead", "list", "--json")
    assert (row["listener"], row["event"], row["error"]) == (WELCOME, "UserCreated", "given up by hand")
    assert installation.run("bus", "dead", "retry", row["id"]) == "retried 1"
    until(lambda: installation.mails_to("lost@example.com"), "the mail is sent after all")
    assert installation.run("bus", "dead", "list", "--json") == []


async def give_up(url: str) -> None:
    """Publish an event in the listener's absence, and make its delivery a dead letter: the retries would take hours."""

    async def send_welcome_email(event: UserCreated) -> None:
        raise AssertionError("no worker runs here")

    clock = SystemClock()
    db = Database(url, clock=clock)
    mq = SqlQueue(db, clock=clock)
    await db.open()
    await mq.open()
    bus = Bus(mq, db, clock=clock)
    bus.add_async_listener(send_welcome_email, name=WELCOME)
    await bus.start()
    await bus.publish(UserCreated(user_id=new_id(), email="lost@example.com", name="Lost"))
    consumer = await mq.consumer(WorkerInfo(id="by-hand", subscriptions=frozenset([WELCOME])))
    [claim] = await consumer.fetch({WELCOME: 1}, wait=0)
    failure = Failure(error="given up by hand")
    await consumer.settle(
        [Settlement(claim=claim, delivery=claim.deliveries[0], outcome=Outcome.DEAD, failure=failure)]
    )
    await consumer.close()
    await bus.close()
    await mq.close()
    await db.close()
