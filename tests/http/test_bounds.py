"""Bounds of the work and of the response size that one request can cause."""

import json

import pytest

from beneath.http.core import routing
from beneath.http.core.problems import ProblemError
from tests.http.conftest import Api, problem

JSON = {"Content-Type": "application/json"}
ONE_MIB = 1024 * 1024


def fields(count: int) -> bytes:
    return b"{" + b",".join(b'"%x":1' % number for number in range(count)) + b"}"


def padded(part: bytes) -> bytes:
    """Return a JSON list with as many of `part` as fit into the largest body."""
    return b"[" + part * ((ONE_MIB - 10) // len(part)) + b"0]"


TOO_MANY = {
    "unknown fields": fields(100_000),
    "numbers": padded(b"0,"),
    "small floats": padded(b"1e-400,"),
    "empty lists": padded(b"[],"),
    "empty objects": padded(b"{},"),
    "empty strings": padded(b'"",'),
    "strings of separators": padded(b'",[{",'),
    "nested objects": b'{"a":' * 150_000,
    "nested lists": b"[" * ONE_MIB,
    "quotes": b'"' * (ONE_MIB - 5000) + b"," * 5000,
    "behind a long string": b'["' + b'\\"' * 500_000 + b'"' + b",1" * 2000 + b"]",
}


@pytest.mark.parametrize("body", TOO_MANY.values(), ids=TOO_MANY)
async def test_body_of_many_values_is_refused_before_it_is_parsed(
    api: Api, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "json", None)
    answer = await api.client.post("/v1/users", content=body, headers=JSON)
    found = problem(answer, 422, "invalid")
    expected = {"where": "body", "detail": "at most 1000 values, nested ones included, are accepted"}
    assert (found["errors"], found["errors_total"]) == ([expected], 1)
    assert len(answer.content) < 1000


async def test_token_count_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0

    class Counting:
        def finditer(self, body: bytes) -> object:
            nonlocal seen
            for each in found.finditer(body):
                seen += 1
                yield each

    found = routing._TOKEN
    monkeypatch.setattr(routing, "_TOKEN", Counting())
    for body in TOO_MANY.values():
        seen = 0
        with pytest.raises(ProblemError):
            routing._require_few_values(body)
        assert seen <= 3 * routing.MAX_VALUES


async def test_at_most_20_errors_are_rendered_with_their_total(api: Api) -> None:
    answer = await api.client.post("/v1/users", content=fields(900), headers=JSON)
    found = problem(answer, 422, "invalid")
    assert (len(found["errors"]), found["errors_total"]) == (20, 902)
    assert found["detail"].endswith("; and 897 more")
    assert len(answer.content) < 5000


@pytest.mark.parametrize(
    "body",
    [
        {"x" * 1_000_000: 1},
        {"email": "x" * 1_000_000, "name": "Ada"},
        {"email": "a@" + "b" * 300_000, "name": "x" * 600_000},
        {f"{number}{'x' * 1000}": 1 for number in range(500)},
        {"email": {"a": "x" * 100_000}, "name": ["x" * 100_000]},
        ["x" * 1_000_000],
        "x" * 1_000_000,
    ],
)
async def test_error_response_repeats_a_bounded_part_of_the_request(api: Api, body: object) -> None:
    answer = await api.client.post("/v1/users", content=json.dumps(body), headers=JSON)
    problem(answer, 422, "invalid")
    assert len(answer.content) < 10_000


@pytest.mark.parametrize(
    "query",
    [
        "limit=" + "9" * 10_000,
        "cursor=" + "x" * 10_000,
        "x" * 10_000,
        "&".join(f"x{number}" for number in range(900)),
        "&".join("limit=1" for _ in range(2000)),
        "&" * 8000,
        "cursor=%ed%a0%80",
        "cursor=%00",
        "cursor=AAAAAAAAAAAAAAAAAAAAA%0A",
        "limit=1e3",
        "limit=%d9%a1",
        "limit=-0",
    ],
)
async def test_malformed_queries_are_refused_with_a_short_response(api: Api, query: str) -> None:
    ada = await api.sign_up()
    answer = await ada("GET", f"/v1/secrets?{query}")
    found = problem(answer, 422, "invalid")
    assert len(found["errors"]) <= 20
    assert len(answer.content) < 10_000


@pytest.mark.parametrize("name", ["\\ud800", "\\u0000", "\\u202e", "\\ud83d\\ude00"])
async def test_unusual_field_names_appear_as_valid_text_in_the_response(api: Api, name: str) -> None:
    body = f'{{"email": "ada@example.com", "name": "Ada", "{name}": 1}}'.encode()
    answer = await api.client.post("/v1/users", content=body, headers=JSON)
    json.dumps(problem(answer, 422, "invalid"), ensure_ascii=False).encode()


@pytest.mark.parametrize("number", [b"9" * 4000, b"-" + b"9" * 4000, b"1e999", b"-0.0", b"1" * 400 + b".5"])
async def test_huge_numbers_are_refused_by_every_field(api: Api, number: bytes) -> None:
    body = b'{"email": %s, "name": %s, "more": %s}' % (number, number, number)
    found = problem(await api.client.post("/v1/users", content=body, headers=JSON), 422, "invalid")
    assert found["errors_total"] == 3
