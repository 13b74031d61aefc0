"""The bodies of sign-up and of the user's own profile."""

from datetime import datetime
from uuid import UUID

from pydantic import Field

from beneath.http.core.schemas import Body, Shown, unchanged
from beneath.http.fields import Email, Name


class NewUser(Body):
    """A sign-up."""

    email: Email
    name: Name = Field(examples=["Ada"])


class UserChange(Body):
    """A change of the user's own profile."""

    email: Email = unchanged()
    name: Name = unchanged()


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
