"""The bodies of requests and responses, separate from tables and events so that these can change alone."""

import re
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from models.email import MAX_LENGTH, PATTERN, normalise_email
from models.name import MAX_LENGTH as MAX_NAME_LENGTH
from models.name import normalise_name
from models.organization import InviteStatus, Role
from models.secret import Scope

# The part of `normalise_name` that a pattern can express, for programs that read the description.
_NAME = r"^[^\x00-\x20\x7f-\xa0\u2028\u2029](?:[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\x00-\x20\x7f-\xa0\u2028\u2029])?$"
# Text may have several lines. NUL cannot be stored by every database.
_TEXT = r"^[^\x00]*$"
_CHARACTERS = r"^[A-Za-z0-9_-]{1,200}$"


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


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_NAME_LENGTH),
    Matching(_NAME, "expected one line that neither begins nor ends with a space"),
    AfterValidator(normalise_name),
]
Text = Annotated[str, StringConstraints(max_length=2000), Matching(_TEXT, "expected text without NUL characters")]
Email = Annotated[
    str,
    StringConstraints(max_length=MAX_LENGTH),
    Matching(PATTERN, "expected name@domain, in ASCII"),
    AfterValidator(normalise_email),
    Field(examples=["ada@example.com"]),
]
Token = Annotated[str, Matching(_CHARACTERS, "expected the token from the mail")]


class Body(BaseModel):
    """The base of request bodies: unknown fields and conversions of types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


def _unchanged() -> Any:  # noqa: ANN401 - the default of a field of any type
    """Return a field that a change leaves unchanged if the client omits it; null is invalid."""
    return Field(default=None, json_schema_extra=_without_default)


class Shown(BaseModel):
    """The base of response bodies, which are read from a row."""

    model_config = ConfigDict(from_attributes=True)


class NewUser(Body):
    """A sign-up."""

    email: Email
    name: Name = Field(examples=["Ada"])


class UserChange(Body):
    """A change of the user's own profile."""

    email: Email = _unchanged()
    name: Name = _unchanged()


class UserOut(Shown):
    """A user, as shown to that user only."""

    id: UUID
    email: str
    name: str
    created_at: datetime
    updated_at: datetime


class SignedUp(Shown):
    """A new user and that user's first secret, which is shown only once."""

    user: UserOut
    secret: str = Field(examples=["bnth_Zm9yIGV4YW1wbGUgb25seSwgbm90IGEgc2VjcmV0ISE"])


class NewOrganization(Body):
    """An organization to create; you become its owner."""

    name: Name = Field(examples=["Analytical Engines"])


class OrganizationChange(Body):
    """A change of an organization's name."""

    name: Name


class OrganizationOut(Shown):
    """An organization of which you are a member; `personal` is true for the one created at your sign-up."""

    id: UUID
    name: str
    personal: bool
    created_at: datetime
    updated_at: datetime


class MemberOut(Shown):
    """A member of an organization."""

    user_id: UUID
    email: str
    name: str
    role: Role
    joined_at: datetime


class RoleChange(Body):
    """A change of a member's role."""

    role: Annotated[Role, Field(strict=False)]


class NewInvite(Body):
    """An invite to create; its mail contains the token that accepts it."""

    email: Email
    role: Annotated[Role, Field(strict=False)] = Role.MEMBER


class InviteOut(Shown):
    """An invite to an organization."""

    id: UUID
    email: str
    role: Role
    status: InviteStatus
    created_at: datetime
    expires_at: datetime


class Acceptance(Body):
    """The token from an invite's mail."""

    token: Token


class NewProject(Body):
    """A project to create."""

    name: Name = Field(examples=["Engine"])
    description: Text = ""


class ProjectChange(Body):
    """A change of a project."""

    name: Name = _unchanged()
    description: Text = _unchanged()


class ProjectOut(Shown):
    """A project of an organization."""

    id: UUID
    organization_id: UUID
    name: str
    description: str
    created_at: datetime
    updated_at: datetime


class NewSecret(Body):
    """A secret to issue; its scopes must be among those of the secret that you use."""

    name: Name = Field(examples=["ci"])
    scopes: Annotated[list[Annotated[Scope, Field(strict=False)]], Field(min_length=1, max_length=len(Scope))]


class SecretOut(Shown):
    """A valid secret; `hint` is its first characters."""

    id: UUID
    name: str
    hint: str
    scopes: list[Scope]
    created_at: datetime


class IssuedOut(Shown):
    """A new secret; `token` is shown only once."""

    secret: SecretOut
    token: str


class EntryOut(Shown):
    """One event in an organization's journal."""

    sequence: int
    event: str
    actor_id: UUID | None
    details: dict[str, Any]
    at: datetime
