"""Table and events of users."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, new_id


class User(Base):
    """A person; `email` is normalised and unique, `version` grows by one with every change."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCreated:
    """A user signed up."""

    user_id: UUID
    email: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserUpdated:
    """A user changed name or email."""

    user_id: UUID
    email: str
    name: str
