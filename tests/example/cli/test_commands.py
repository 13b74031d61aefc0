"""Commands on the listeners and deliveries of the example."""

import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import Beneath, refused


def test_listeners_are_listed_without_a_database(beneath: Beneath, folder: Path) -> None:
    rows = {each["listener"]: each for each in json.loads(beneath("bus", "listeners", "--json").out)}
    assert rows["notification.send_welcome_email"]["events"] == ["UserCreated"]
    assert rows["notification.send_welcome_email"]["attempts"] == 8
    assert rows["audit.record"]["kind"] == "ordered"
    assert rows["audit.record"]["once"] is True
    assert "audit.record" in beneath("bus", "listeners").out
    assert list(folder.iterdir()) == []


def test_explain_lists_the_effects_of_a_publish(beneath: Beneath) -> None:
    described: dict[str, Any] = json.loads(beneath("bus", "explain", "UserCreated", "--json").out)
    kinds = {each["listener"].rpartition(".")[2]: each["kind"] for each in described["listeners"]}
    assert (kinds["create_personal"], kinds["send_welcome_email"]) == ("sync", "async")
    shown = beneath("bus", "explain", "UserCreated").out
    assert "8 attempts, at most 1, 2, 4, 8, 16, 32, 64 s apart; then a dead letter" in shown


def test_created_user_causes_pending_events(beneath: Beneath) -> None:
    created = beneath("user", "create", "Ada@Example.com")
    assert created.code == 0
    assert len(created.out.split()) == 1
    refused(beneath("user", "create", "ada@example.com"), "another user has this email")
    refused(beneath("user", "create", "nonsense"), "not an email address")
    waiting = {each["listener"]: each for each in json.loads(beneath("bus", "stats", "--json").out)}
    assert waiting["notification.send_welcome_email"]["ready"] == 1
    assert waiting["audit.record"]["ready"] == 2
    assert waiting["audit.record"]["oldest_seconds"] >= 0

    some_id = "01890a5d-ac96-774b-bcce-b302099a8057"
    unknown_user = json.dumps({"user_id": some_id, "email": "b@example.com", "name": "B"})
    refused(beneath("bus", "publish", "UserCreated", unknown_user), "was not published, because a sync listener failed")
    project = dict.fromkeys(["organization_id", "actor_id", "project_id"], some_id)
    published = beneath("bus", "publish", "ProjectDeleted", json.dumps({**project, "name": "P"}))
    assert published.out == "published ProjectDeleted\n"
    assert beneath("bus", "pause", "audit.record").code == 0
    waiting = {each["listener"]: each for each in json.loads(beneath("bus", "stats", "--json").out)}
    assert waiting["notification.send_welcome_email"]["ready"] == 1
    assert (waiting["audit.record"]["ready"], waiting["audit.record"]["paused"]) == (3, True)
    assert "audit.record" in beneath("bus", "stats").out
    assert beneath("bus", "resume", "audit.record").code == 0

    refused(beneath("bus", "pause", "audit.recrd"), "no listener 'audit.recrd'; did you mean audit.record?")
    refused(beneath("bus", "retire", "audit.record"), code=1)
    refused(beneath("bus", "unblock", "audit.record", "k"), code=1)
    retired = beneath("bus", "retire", "notification.send_welcome_email", "--backlog", "dead")
    assert retired.out == "retired notification.send_welcome_email; 1 delivery waited for it\n"


def test_dead_letters_are_listed_shown_retried_and_discarded(beneath: Beneath) -> None:
    assert beneath("bus", "dead", "list").err == "no dead letters\n"
    for name in ("ada", "bob", "cyd"):
        beneath("user", "create", f"{name}@example.com")
    beneath("bus", "retire", "notification.send_welcome_email", "--backlog", "dead")
    letters = json.loads(beneath("bus", "dead", "list", "--json").out)
    assert [each["event"] for each in letters] == ["UserCreated"] * 3
    ids = [each["id"] for each in letters]
    assert ids[0] in beneath("bus", "dead", "list").out

    shown = json.loads(beneath("bus", "dead", "show", ids[0], "--json").out)
    assert shown["payload"]["email"] == "ada@example.com"
    assert "ada@example.com" in beneath("bus", "dead", "show", ids[0]).out

    refused(beneath("bus", "dead", "show", "nope"), "there is no dead letter 'nope'")
    refused(
        beneath("bus", "dead", "discard", ids[0], "nope"),
        "there is no dead letter 'nope', so nothing was changed; list them",
    )
    refused(beneath("bus", "dead", "discard"), "select dead letters by ids")
    refused(beneath("bus", "dead", "discard", ids[0], "--all"), "select dead letters by ids")
    assert len(json.loads(beneath("bus", "dead", "list", "--json").out)) == 3

    assert beneath("bus", "dead", "discard", ids[0]).out == "discarded 1\n"
    assert beneath("bus", "dead", "discard", "--event", "Other").out == "discarded 0\n"
    assert beneath("bus", "dead", "discard", "--listener", "notification.send_welcome_email").out == "discarded 2\n"
    assert json.loads(beneath("bus", "dead", "list", "--json").out) == []
