"""The bodies of API secrets."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from beneath.http.core.schemas import Body, Shown
from beneath.http.fields import Name
from models.secret import Scope


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
