"""The OpenAPI description of the HTTP API."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.conftest import Api
from tests.http.operations import operations
from tests.http.samples import Schema

OPEN = {"POST /v1/users"}
"""The operations that require no secret."""


@pytest.fixture
async def description(api: Api) -> dict[str, Any]:
    body: dict[str, Any] = (await api.client.get("/openapi.json")).json()
    return body


async def test_every_operation_is_described(api: Api) -> None:
    found = list(operations(api.app))
    for operation in found:
        assert operation.spec["summary"], str(operation)
        assert operation.spec.get("description"), f"{operation}: its handler has no docstring"
        assert operation.spec.get("tags"), f"{operation}: its router has no tags"
        assert operation.path.startswith("/v1/")
    ids = [operation.spec["operationId"] for operation in found]
    assert len(set(ids)) == len(ids)


async def test_every_operation_but_sign_up_takes_a_secret(api: Api, description: dict[str, Any]) -> None:
    for operation in operations(api.app):
        described = "requires no secret" if operation.is_open else "requires a secret"
        wanted = f"{operation} {described}; give it a Reader or Writer, or list it in OPEN of {Path(__file__).name}"
        assert operation.is_open == (str(operation) in OPEN), wanted
        assert ("401" in operation.spec["responses"]) != operation.is_open, f"{operation}: problems(*AUTHENTICATED)"
    assert description["components"]["securitySchemes"]["secret"]["scheme"] == "bearer"


async def test_every_error_is_a_problem_with_an_example(api: Api) -> None:
    for operation in operations(api.app):
        for status, response in operation.spec["responses"].items():
            if status >= "400":
                content = response.get("content", {})
                assert list(content) == ["application/problem+json"], f"{operation}: declare {status} by problems(...)"
                assert content["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
                for example in content["application/problem+json"]["examples"].values():
                    assert str(example["value"]["status"]) == status


async def test_every_reference_resolves(api: Api) -> None:
    text = (await api.client.get("/openapi.json")).text
    schemas = (await api.client.get("/openapi.json")).json()["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= set(schemas)
    assert "HTTPValidationError" not in schemas


async def test_every_input_refuses_unknown_fields(api: Api) -> None:
    for operation in operations(api.app):
        if operation.body is not None:
            for schema in objects_in(operation.body, operation.schemas):
                refuses = schema.get("additionalProperties") is False
                assert refuses, f"{operation}: {schema.get('title')} accepts unknown fields; derive it from Body"


def objects_in(schema: Schema, schemas: Schema, seen: frozenset[str] = frozenset()) -> Iterator[Schema]:
    """Yield the schemas of the objects that a body consists of, nested ones included; `seen` are those above."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in seen:
            return
        schema, seen = schemas[name], seen | {name}
    if schema.get("type") == "object":
        yield schema
    unions = [each for union in ("anyOf", "oneOf", "allOf") for each in schema.get(union, ())]
    items = [schema["items"]] if "items" in schema else []
    for inner in [*unions, *items, *schema.get("properties", {}).values()]:
        yield from objects_in(inner, schemas, seen)


async def test_the_docs_load_nothing_from_elsewhere(api: Api) -> None:
    page = await api.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    for path in ("/docs", "/docs/style.css", "/docs/script.js"):
        answer = await api.client.get(path)
        assert answer.status_code == 200
        assert not re.search(r"""["'(](?:https?:)?//""", answer.text)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert not [url for url in loaded if url.startswith(("http", "//"))]


async def test_version_headers_are_described_where_they_are_used(api: Api) -> None:
    for operation in operations(api.app):
        takes = any(each["name"].lower() == "if-match" for each in operation.spec.get("parameters", []))
        if takes and operation.method == "PATCH":
            answer = operation.spec["responses"].get("200", {})
            assert "ETag" in answer.get("headers", {}), f"{operation}: declare its answer by versioned(200)"
            assert "412" in operation.spec["responses"], f"{operation}: declare problems(CHANGED)"
