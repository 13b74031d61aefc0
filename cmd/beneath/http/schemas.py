"""What the API takes and gives; tables and events may change without these."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from models.email import MAX_LENGTH, PATTERN, normalise_email
from models.organization import InviteStatus, Role
from models.secret import Scope

# No control characters, and no spaces at either end: a name is shown in lines of text, mails and logs.
_NAME = r"^[^\x00-\x20\x7f](?:[^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?$"
# Text may have several lines. NUL cannot be stored by every database.
_TEXT = r"^[^\x00]*$"

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_NAME)]
Text = Annotated[str, StringConstraints(max_length=2000, pattern=_TEXT)]
Email = Annotated[
    str,
    StringConstraints(max_length=MAX_LENGTH, pattern=PATTERN),
    AfterValidator(normalise_email),
    Field(examples=["ada@example.com"]),
]


class Body(BaseModel):
    """What a client sends: nothing that is not asked for, and no guessing at types."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


def _unchanged() -> Any:  # noqa: ANN401 - stands where a field's value does
    """Return what a change leaves alone unless the client names it; null is not a way to say so."""
    return Field(default=None, json_schema_extra=_without_default)


class Shown(BaseModel):
    """What a client gets, read from a row."""

    model_config = ConfigDict(from_attributes=True)


class NewUser(Body):
    """A sign-up."""

    email: Email
    name: Name = Field(examples=["Ada"])


class UserChange(Body):
    """A change of one's profile."""

    email: Email = _unchanged()
    name: Name = _unchanged()


class UserOut(Shown):
    """A user, as only that user sees it."""

    id: UUID
    email: str
    name: str
    created_at: datetime
    updated_at: datetime


class SignedUp(Shown):
    """A new user, and a secret to act as that user. The secret is shown only here."""

    user: UserOut
    secret: str = Field(examples=["bnth_Zm9yIGV4YW1wbGUgb25seSwgbm90IGEgc2VjcmV0ISE"])


class NewOrganization(Body):
    """An organization to create, which you will own."""

    name: Name = Field(examples=["Analytical Engines"])


class OrganizationChange(Body):
    """Another name for an organization."""

    name: Name


class OrganizationOut(Shown):
    """An organization that you are in; `personal` is the one that came with your sign-up."""

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
    """Another role for a member."""

    role: Annotated[Role, Field(strict=False)]


class NewInvite(Body):
    """An invite, which is mailed with the token that accepts it."""

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

    token: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_-]+$")]


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
    """A secret to issue, with no scope that the one you use lacks."""

    name: Name = Field(examples=["ci"])
    scopes: Annotated[list[Annotated[Scope, Field(strict=False)]], Field(min_length=1, max_length=len(Scope))]


class SecretOut(Shown):
    """A secret that is in force; `hint` is how it begins."""

    id: UUID
    name: str
    hint: str
    scopes: list[Scope]
    created_at: datetime


class IssuedOut(Shown):
    """A new secret. It is shown only here."""

    secret: SecretOut
    token: str


class EntryOut(Shown):
    """One event in an organization's journal."""

    sequence: int
    event: str
    actor_id: UUID | None
    details: dict[str, Any]
    at: datetime
