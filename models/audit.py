"""The table of the journal: the recorded events of each organization."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class JournalEntry(Base):
    """One event of an organization; `sequence` counts from 1 without gaps, in the order of the events.

    It has no foreign keys, so that an entry outlives the rows that it mentions.
    """

    __tablename__ = "journal_entries"

    organization_id: Mapped[UUID] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    event: Mapped[str] = mapped_column(String(200))
    event_id: Mapped[str] = mapped_column(String(100))
    actor_id: Mapped[UUID | None]
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime]
