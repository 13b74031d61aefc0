"""Shared steps of service tests: sign-up of users by their first names, and counts of rows."""

from uuid import UUID

from sqlalchemy import func, select

from infra.db import Database
from models import Base
from tests.world import World


def email(name: str) -> str:
    return f"{name}@example.com"


async def sign_up(domain: World, name: str) -> UUID:
    """Create a user called `name`, and return the user's id."""
    return (await domain.user.create(email(name), name)).id


async def rows(db: Database) -> dict[str, int]:
    """Return the number of rows of each table that is not empty."""
    async with db.read() as session:
        counts = {
            table.name: await session.scalar(select(func.count()).select_from(table))
            for table in Base.metadata.sorted_tables
        }
    return {name: count for name, count in counts.items() if count}
