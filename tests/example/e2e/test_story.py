"""A scenario of several users on two servers, two workers and an SMTP server that refuses mails."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from tests.e2e.application import SERVER, WORKER, Caller, Installation, Running
from tests.e2e.processes import until
from tests.e2e.smtp_server import SmtpServer
from tests.example.services.inviting import token_in

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(180)]

INVITE_LIFETIME = 20.0
"""Seconds: enough for a mail, a command and an acceptance on a busy machine, and short enough for the test."""

REVOCATION_BOUND = 1.0
"""The guaranteed seconds within which every server refuses a revoked secret."""

ADA, BOB, DEE, EVE = (f"{name}@example.com" for name in ("ada", "bob", "dee", "eve"))


@dataclass(frozen=True, slots=True)
class Cast:
    """The processes and the SMTP server of the scenario."""

    installation: Installation
    smtp: SmtpServer
    servers: tuple[Running, Running]
    workers: tuple[Running, Running]

    def lines(self, event: str, correlation_id: str) -> list[dict[str, Any]]:
        """Return the workers' log lines of an event that one request caused."""
        lines = [line for worker in self.workers for line in worker.logs]
        return [each for each in lines if each["event"] == event and each.get("correlation_id") == correlation_id]


@pytest.fixture
def cast(installation: Installation) -> Iterator[Cast]:
    with SmtpServer() as smtp:
        env = {
            "BENEATH_MAIL_SMTP_URL": smtp.url,
            "BENEATH_ORGANIZATION_INVITE_LIFETIME": str(INVITE_LIFETIME),
        }
        first = installation.start(SERVER, env=env)
        second, *workers = (Running(installation.spawn("start", name, env=env)) for name in (SERVER, WORKER, WORKER))
        for each in (second, *workers):
            each.wait_ready()
        yield Cast(installation, smtp, (first, second), (workers[0], workers[1]))
        for each in (*workers, second, first):
            each.stop()


def send(caller: Caller, path: str, body: object, *, request_id: str) -> dict[str, Any]:
    """POST a body with a request id; return the response."""
    headers = {"Authorization": f"Bearer {caller.secret}", "X-Request-ID": request_id}
    answer = httpx2.post(caller.url + path, json=body, headers=headers, timeout=30)
    assert answer.is_success, answer.text
    assert answer.headers["x-request-id"] == request_id
    sent: dict[str, Any] = answer.json()
    return sent


def invited(cast: Cast, ada: Caller, organization: str, email: str) -> tuple[dict[str, Any], str]:
    """Invite a user; return the invite, and the token from the mail."""
    path = f"/v1/organizations/{organization}/invites"
    invite = send(ada, path, {"email": email}, request_id=f"invite-{email}")
    [mail] = until(lambda: cast.smtp.mails_to(email), f"the invite to {email} is mailed")
    assert mail["Subject"] == "Join Ada's organization"
    assert mail["To"] == email
    return invite, token_in("\n".join(mail.get_content().splitlines()))


def test_users_sign_up_invite_join_and_lose_their_secrets(cast: Cast) -> None:
    here, there = cast.servers
    cast.smtp.refusals = {BOB: ["451 4.7.1 come back later"], EVE: ["550 5.1.1 unknown user"] * 9}

    ada = here.sign_up(ADA)
    [welcome] = until(lambda: cast.smtp.mails_to(ADA), "Ada is welcomed")
    assert welcome["Subject"] == "Welcome"
    organization = ada.items("/v1/organizations")[0]["id"]

    # Refused temporarily: the delivery is retried, and the log names the request.
    accepted, token = invited(cast, ada, organization, BOB)
    assert cast.smtp.attempts.count(BOB) == 2
    [failure] = until(lambda: cast.lines("listener failed", f"invite-{BOB}"), "a worker tells of the refusal")
    assert (failure["listener"], failure["attempt"]) == ("notification.send_invite", 1)
    assert "451 4.7.1 come back later" in failure["error"]

    # Accepted on another server than the one that scheduled the expiry.
    bob = there.sign_up(BOB, "Bob")
    assert cast.installation.stats("organization.expire_invite")["scheduled"] == 1
    joined = send(bob, "/v1/invites/accept", {"token": token}, request_id="accept")
    assert joined["id"] == organization
    assert {each["email"] for each in bob.items(f"/v1/organizations/{organization}/members")} == {ADA, BOB}
    assert cast.installation.stats("organization.expire_invite")["scheduled"] == 0

    # Refused permanently: the delivery is discarded, without a dead letter.
    answer = httpx2.post(
        f"{here.url}/v1/users", json={"email": EVE, "name": "Eve"}, headers={"X-Request-ID": "eve"}, timeout=30
    )
    assert answer.status_code == 201
    [given_up] = until(lambda: cast.lines("delivery discarded", "eve"), "a worker tells of the refusal")
    assert given_up["listener"] == "notification.send_welcome_email"
    assert "550 5.1.1 unknown user" in given_up["reason"]

    # Not accepted in time; the first invite has expired by then as well.
    expiring, token = invited(cast, ada, organization, DEE)
    journal = f"/v1/organizations/{organization}/audit"
    until(lambda: ada.items(journal)[-1]["event"] == "InviteExpired", "the invite expires", timeout=60)
    assert datetime.now(UTC) > datetime.fromisoformat(expiring["expires_at"])
    refused = bob.request("POST", "/v1/invites/accept", {"token": token})
    assert (refused.status_code, refused.json()["type"]) == (404, "urn:beneath:problem:not-found")
    statuses = {each["id"]: each["status"] for each in ada.items(f"/v1/organizations/{organization}/invites")}
    assert statuses == {accepted["id"]: "accepted", expiring["id"]: "expired"}
    entries = [(each["event"], each["details"].get("invite_id")) for each in ada.items(journal)]
    assert entries == [
        ("OrganizationCreated", None),
        ("ProjectCreated", None),
        ("MemberInvited", accepted["id"]),
        ("MemberJoined", accepted["id"]),
        ("MemberInvited", expiring["id"]),
        ("InviteExpired", expiring["id"]),
    ]

    assert_a_revoked_secret_is_refused_everywhere(cast, ada)

    assert cast.smtp.attempts.count(EVE) == 1
    assert cast.smtp.mails_to(EVE) == []
    subjects = [sorted(mail["Subject"] for mail in cast.smtp.mails_to(each)) for each in (ADA, BOB, DEE)]
    assert subjects == [["Welcome"], ["Join Ada's organization", "Welcome"], ["Join Ada's organization"]]
    assert cast.installation.run("bus", "dead", "list", "--json") == []


def assert_a_revoked_secret_is_refused_everywhere(cast: Cast, ada: Caller) -> None:
    """Revoke a secret on one server; check that both servers refuse it, although both have it cached."""
    issued = send(ada, "/v1/secrets", {"name": "ci", "scopes": ["read"]}, request_id="issue")
    here, there = (Caller(server.url, issued["token"]) for server in cast.servers)
    assert [each.request("GET", "/v1/me").status_code for each in (here, there)] == [200, 200]
    assert ada.request("DELETE", f"/v1/secrets/{issued['secret']['id']}").status_code == 204
    revoked_at = time.monotonic()
    assert here.request("GET", "/v1/me").status_code == 401
    until(lambda: there.request("GET", "/v1/me").status_code == 401, "the other refuses it", timeout=REVOCATION_BOUND)
    print(f"the other server refused it {time.monotonic() - revoked_at:.2f} s after the revocation")  # noqa: T201
    assert ada.request("GET", "/v1/me").status_code == 200
