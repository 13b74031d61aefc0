"""Table and event of API secrets, with which clients authenticate."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, new_id


class Scope(StrEnum):
    """A permission of a secret; no scope includes another."""

    READ = "read"
    """Read what its user may read."""

    WRITE = "write"
    """Change what its user may change."""

    SECRETS = "secrets"
    """Issue, list and revoke secrets."""


class Secret(Base):
    """A secret of a user. The token is shown once, when it is issued; only its SHA-256 is stored."""

    __tablename__ = "secrets"
    __table_args__ = (Index(None, "user_id", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(String(200))
    hint: Mapped[str] = mapped_column(String(20))
    """The secret's first characters, by which its owner recognizes it."""
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRevoked:
    """A secret was revoked."""

    secret_id: UUID
    user_id: UUID
