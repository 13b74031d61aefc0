"""The OpenAPI description of the HTTP API."""

import re
from typing import Any

import pytest

from tests.http.conftest import Api

OPEN = {("/v1/users", "post")}


@pytest.fixture
async def description(api: Api) -> dict[str, Any]:
    body: dict[str, Any] = (await api.client.get("/openapi.json")).json()
    return body


def operations(description: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, it) for path, methods in description["paths"].items() for method, it in methods.items()]


async def test_every_operation_is_described(description: dict[str, Any]) -> None:
    for path, method, operation in operations(description):
        assert operation["summary"], (path, method)
        assert operation["description"], (path, method)
        assert operation["tags"], (path, method)
        assert path.startswith("/v1/")
    ids = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(set(ids)) == len(ids)


async def test_every_operation_but_sign_up_takes_a_secret(description: dict[str, Any]) -> None:
    for path, method, operation in operations(description):
        assert ("security" in operation) == ((path, method) not in OPEN), (path, method)
        assert ("401" in operation["responses"]) == ((path, method) not in OPEN), (path, method)
    assert description["components"]["securitySchemes"]["secret"]["scheme"] == "bearer"


async def test_every_error_is_a_problem_with_an_example(description: dict[str, Any]) -> None:
    for path, method, operation in operations(description):
        for status, response in operation["responses"].items():
            if status >= "400":
                content = response["content"]
                assert list(content) == ["application/problem+json"], (path, method, status)
                assert content["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
                for example in content["application/problem+json"]["examples"].values():
                    assert str(example["value"]["status"]) == status


async def test_every_reference_resolves(api: Api) -> None:
    text = (await api.client.get("/openapi.json")).text
    schemas = (await api.client.get("/openapi.json")).json()["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= set(schemas)
    assert "HTTPValidationError" not in schemas


async def test_every_input_refuses_unknown_fields(description: dict[str, Any]) -> None:
    for path, method, operation in operations(description):
        if body := operation.get("requestBody"):
            name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert description["components"]["schemas"][name]["additionalProperties"] is False, (path, method)


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


async def test_version_headers_are_described_where_they_are_used(description: dict[str, Any]) -> None:
    for path, method, operation in operations(description):
        takes = any(each["name"].lower() == "if-match" for each in operation.get("parameters", []))
        if takes and method == "patch":
            assert "ETag" in operation["responses"]["200"]["headers"], path
            assert "412" in operation["responses"], path
