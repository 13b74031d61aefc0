"""Values made from schemas, as the tests of all operations send them."""

from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import Field, TypeAdapter

from beneath.http.core.schemas import Body, Matching
from beneath.http.fields import Email, Name
from models.secret import Scope
from tests.http.samples import NoSample, Schema, sample


class Part(Body):
    """A body within a body."""

    at: UUID
    parts: list["Part"] = Field(default_factory=list)


class Whole(Body):
    """A body with fields of many types."""

    name: Name
    email: Email
    scope: Scope
    part: Part
    numbers: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=2)]
    note: str | None
    left_out: str = ""


class Coded(Body):
    """A body whose field has a pattern and no example."""

    code: Annotated[str, Matching("^[0-9]+$", "expected digits")]


class Change(Body):
    """A body without required fields."""

    name: Name = ""


def sampled(model: type[Body]) -> Any:  # noqa: ANN401 - any JSON value
    schema: Schema = TypeAdapter(model).json_schema(ref_template="#/components/schemas/{model}")
    return sample("body", schema, schema.get("$defs", {}))


def test_sample_has_the_required_fields_and_is_valid() -> None:
    made = sampled(Whole)
    assert made.keys() == Whole.model_fields.keys() - {"left_out"}
    Whole.model_validate_json(TypeAdapter(Any).dump_json(made), strict=False)


def test_sample_without_required_fields_has_all() -> None:
    assert sampled(Change).keys() == {"name"}


def test_schema_that_needs_an_example_is_named() -> None:
    with pytest.raises(NoSample, match=r"no valid value of body\.code is known; give its field an example"):
        sampled(Coded)


def test_integer_with_a_bound_is_an_integer() -> None:
    assert repr(sample("body", {"type": "integer", "minimum": 3.0}, {})) == "3"
