"""Valid values made from the schemas of the API's description."""

import math
import re
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

FORMATS = {"uuid": "01a20997-b939-7318-8d0c-000000000000", "date-time": "2026-01-01T00:00:00Z", "date": "2026-01-01"}
"""A valid text of each format."""


class NoSample(Exception):
    """A schema tells too little about its values, and has no example."""


def sample(name: str, schema: Schema, schemas: Schema) -> Any:  # noqa: ANN401 - any JSON value
    """Return a valid value of `schema`, an example of it if it has some.

    `name` is where the value stands; `schemas` has the schemas of the description by name. An object has its required
    fields; if none is required, all.

    Raises:
        NoSample: the schema needs an example.
    """
    if "$ref" in schema:
        return sample(name, schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema and "examples" not in schema:
            return sample(name, schema[union][0], schemas)
    if schema.get("type") == "object":
        fields = schema.get("properties", {})
        return {each: sample(f"{name}.{each}", fields[each], schemas) for each in schema.get("required", fields)}
    if schema.get("type") == "array" and "examples" not in schema:
        count = schema.get("minItems", 0)
        return [sample(f"{name}[]", schema["items"], schemas)] * count if count else []
    found = _values(schema)
    if not found:
        raise NoSample(f"no valid value of {name} is known; give its field an example: Field(examples=[...])")
    return found[0]


def _values(schema: Schema) -> list[Any]:
    given = schema.get("examples") or schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if given:
        return list(given)
    match schema.get("type"):
        case "integer" | "number" as kind:
            least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
            return [math.ceil(least) if kind == "integer" else least]  # the description has bounds as floats
        case "boolean":
            return [True]
        case "string":
            text = FORMATS.get(schema.get("format", ""), "x" * max(1, schema.get("minLength", 0)))
            return [text] if re.search(schema.get("pattern", ""), text) else []
    return []
