"""Field types of request bodies that several domains use: names and email addresses."""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from beneath.http.core.schemas import Matching
from models.email import MAX_LENGTH, PATTERN, normalise_email
from models.name import MAX_LENGTH as MAX_NAME_LENGTH
from models.name import normalise_name

# The part of `normalise_name` that a pattern can express, for programs that read the description.
_NAME = r"^[^\x00-\x20\x7f-\xa0\u2028\u2029](?:[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\x00-\x20\x7f-\xa0\u2028\u2029])?$"

Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_NAME_LENGTH),
    Matching(_NAME, "expected one line that neither begins nor ends with a space"),
    AfterValidator(normalise_name),
]
Email = Annotated[
    str,
    StringConstraints(max_length=MAX_LENGTH),
    Matching(PATTERN, "expected name@domain, in ASCII"),
    AfterValidator(normalise_email),
    Field(examples=["ada@example.com"]),
]
