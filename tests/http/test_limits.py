"""Rate limits of sign-ups and invites, by address and by user."""

import pytest

from beneath.http.app import HttpOptions
from beneath.http.core import limits
from beneath.http.core.limits import AddressLimit
from infra.clock import FakeClock
from tests.http.conftest import Api, problem


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_bucket_allows_a_burst_and_then_one_request_per_interval(clock: FakeClock) -> None:
    limit = AddressLimit(clock, "tests", 3, 60)
    assert [limit.take("192.0.2.1") for _ in range(4)] == [0, 0, 0, 20]
    assert limit.take("192.0.2.2") == 0, "another address has its own"
    clock.move_to(clock.time() + 19.5)
    assert 0 < limit.take("192.0.2.1") <= 0.5, "a refused use costs nothing"
    clock.move_to(clock.time() + 0.5)
    assert limit.take("192.0.2.1") == 0
    assert limit.take("192.0.2.1") > 0
    clock.move_to(clock.time() + 600)
    assert [limit.take("192.0.2.1") for _ in range(4)] == [0, 0, 0, 20]


def test_ipv6_client_is_identified_by_its_64_bit_network(clock: FakeClock) -> None:
    limit = AddressLimit(clock, "tests", 1, 60)
    assert limit.take("2001:db8::1") == 0
    assert limit.take("2001:db8::ffff:ffff:ffff:ffff") > 0
    assert limit.take("2001:db8:0:1::1") == 0


def test_mapped_address_is_identified_as_the_ipv4_client(clock: FakeClock) -> None:
    limit = AddressLimit(clock, "tests", 1, 60)
    assert limit.take("::ffff:192.0.2.1") == 0
    assert limit.take("192.0.2.1") > 0
    assert limit.take("::ffff:192.0.2.2") == 0, "not one for all of IPv4"


def test_invalid_addresses_count_as_one_client(clock: FakeClock) -> None:
    limit = AddressLimit(clock, "tests", 1, 60)
    assert limit.take("unknown") == 0
    assert limit.take("x" * 10_000) > 0


def test_limit_remembers_a_bounded_number_of_addresses(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ADDRESSES", 10)
    limit = AddressLimit(clock, "tests", 1, 60)
    for number in range(100):
        limit.take(f"192.0.2.{number}")
        limit.take("192.0.2.0")
    assert len(limit) == 10
    assert limit.take("192.0.2.0") > 0, "one that comes again and again is not forgotten"


class TestSignUps:
    @pytest.fixture
    def options(self) -> HttpOptions:
        return HttpOptions(max_sign_ups=2)

    async def test_sign_ups_from_one_address_are_limited(self, api: Api) -> None:
        for number in range(2):
            await api.sign_up(f"ada{number}@example.com")
        answer = await api.client.post("/v1/users", json={"email": "ada2@example.com", "name": "Ada"})
        problem(answer, 429, "too-many-requests")
        assert int(answer.headers["retry-after"]) == 1800
        await api.domain.kit.advance(seconds=1800)
        await api.sign_up("ada2@example.com")

    async def test_changes_of_email_are_limited_like_sign_ups(self, api: Api) -> None:
        eve = await api.sign_up("eve@example.com", "Eve")
        assert (await eve("PATCH", "/v1/me", json={"email": "eve@example.com", "name": "E"})).status_code == 200
        problem(await eve("PATCH", "/v1/me", json={"email": "nobody"}), 422, "invalid")
        assert (await eve("PATCH", "/v1/me", json={"email": "eve2@example.com"})).status_code == 200
        problem(await eve("PATCH", "/v1/me", json={"email": "ada@example.com"}), 429, "too-many-requests")
        assert (await eve("PATCH", "/v1/me", json={"name": "Eve"})).status_code == 200

    async def test_forwarded_address_without_a_trusted_proxy_is_ignored(self, api: Api) -> None:
        answers = []
        for number in range(3):
            headers = {"X-Forwarded-For": f"192.0.2.{number}", "Forwarded": f"for=192.0.2.{number}"}
            body = {"email": f"ada{number}@example.com", "name": "Ada"}
            answers.append(await api.client.post("/v1/users", json=body, headers=headers))
        problem(answers[-1], 429, "too-many-requests")

    async def test_invalid_sign_up_is_not_counted(self, api: Api) -> None:
        for _ in range(5):
            problem(await api.client.post("/v1/users", json={"email": "ada"}), 422, "invalid")
        await api.sign_up()
