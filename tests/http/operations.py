"""The operations of the API's description, with valid requests made from their schemas, for tests that walk all."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx2
import pytest
from fastapi import FastAPI

from tests.http.conftest import Caller
from tests.http.samples import NoSample, Schema, sample


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path."""

    method: str
    path: str
    spec: Schema
    schemas: Schema
    """The schemas of the description by name."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def objects(self) -> list[str]:
        """The names of the path's parameters."""
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def is_open(self) -> bool:
        """Whether it requires no secret."""
        return "security" not in self.spec

    @property
    def body(self) -> Schema | None:
        """The schema of the request's body; None if it has none."""
        content = self.spec.get("requestBody", {}).get("content", {})
        schema: Schema | None = content.get("application/json", {}).get("schema")
        return schema

    async def call(self, caller: Caller, ids: Mapping[str, str], headers: Mapping[str, str]) -> httpx2.Response:
        """Send a valid request about the objects `ids`, by the names of the path's parameters; make up other ids."""
        try:
            answer = await self._send(caller, ids, headers)
        except NoSample as error:
            pytest.fail(f"{self}: {error}")
        if answer.status_code == 422:
            pytest.fail(f"{self} refuses a request made from its schema; give its fields examples: {answer.text}")
        return answer

    async def _send(self, caller: Caller, ids: Mapping[str, str], headers: Mapping[str, str]) -> httpx2.Response:
        required = [each for each in self.spec.get("parameters", ()) if each.get("required")]
        values = {
            each["name"]: ids.get(each["name"]) or sample(each["name"], each["schema"], self.schemas)
            for each in required
        }
        query = urlencode({each["name"]: values[each["name"]] for each in required if each["in"] == "query"})
        sent = {each["name"]: values[each["name"]] for each in required if each["in"] == "header"}
        body = None if self.body is None else sample("body", self.body, self.schemas)
        path = f"{self.path.format(**values)}?{query}"
        return await caller(self.method, path, json=body, headers={**sent, **headers})


def operations(app: FastAPI) -> Iterator[Operation]:
    """Yield every operation that the API's description has."""
    described = app.openapi()
    for path, methods in described["paths"].items():
        for method, spec in methods.items():
            yield Operation(method.upper(), path, spec, described["components"]["schemas"])
