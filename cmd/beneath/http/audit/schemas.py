"""The body of an entry in an organization's journal."""

from datetime import datetime
from typing import Any
from uuid import UUID

from beneath.http.core.schemas import Shown


class EntryOut(Shown):
    """One event in an organization's journal."""

    sequence: int
    event: str
    actor_id: UUID | None
    details: dict[str, Any]
    at: datetime
