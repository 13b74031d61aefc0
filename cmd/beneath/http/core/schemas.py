"""Base classes and field types of the bodies of requests and responses."""

import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

# Text may have several lines. NUL cannot be stored by every database.
_TEXT = r"^[^\x00]*$"


class Matching:
    """A validator of text by a pattern, which the description shows to programs; the error shows `expected`."""

    def __init__(self, pattern: str, expected: str) -> None:
        self._pattern = pattern
        self._valid = re.compile(pattern.removesuffix("$") + r"\Z")
        self._expected = expected

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"pattern": self._pattern}

    def _check(self, text: str) -> str:
        if not self._valid.match(text):
            raise ValueError(self._expected)
        return text


Text = Annotated[str, StringConstraints(max_length=2000), Matching(_TEXT, "expected text without NUL characters")]


class Body(BaseModel):
    """The base of request bodies: unknown fields and conversions of types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


def unchanged() -> Any:  # noqa: ANN401 - the default of a field of any type
    """Return a field that a change leaves unchanged if the client omits it; null is invalid."""
    return Field(default=None, json_schema_extra=_without_default)


class Shown(BaseModel):
    """The base of response bodies, which are read from a row."""

    model_config = ConfigDict(from_attributes=True)
