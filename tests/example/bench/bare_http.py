"""The baseline of `make bench-http`: a FastAPI and SQLAlchemy application as in their tutorials.

It returns the same rows by the same queries, without authentication, request ids and our headers.
"""

import socket
import sys
from contextlib import closing
from datetime import datetime
from uuid import UUID

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from models.organization import Member, Organization
from models.user import User


class UserOut(BaseModel):
    """A user."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    name: str
    created_at: datetime
    updated_at: datetime


class OrganizationOut(BaseModel):
    """An organization."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    personal: bool
    created_at: datetime
    updated_at: datetime


class Organizations(BaseModel):
    """A page of organizations."""

    items: list[OrganizationOut]
    next: str | None


def create_app(path: str, user_id: UUID) -> FastAPI:
    """Return two bare routes over the database file at `path`, for one user."""
    app = FastAPI()
    # One connection per client of the benchmark; by default a third of them would be reopened for each request.
    sessions = async_sessionmaker(create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=32))

    @app.get("/v1/me")
    async def show_me() -> UserOut:
        async with sessions() as session:
            return UserOut.model_validate(await session.get(User, user_id))

    @app.get("/v1/organizations")
    async def list_organizations() -> Organizations:
        query = select(Organization).join(Member, Member.organization_id == Organization.id)
        query = query.where(Member.user_id == user_id).order_by(Organization.id).limit(51)
        async with sessions() as session:
            rows = (await session.scalars(query)).all()
        return Organizations(items=[OrganizationOut.model_validate(row) for row in rows], next=None)

    return app


def main() -> None:
    """Serve at a free port and print it: `python -m tests.example.bench.bare_http FILE USER_ID`."""
    path, user_id = sys.argv[1:]
    # asyncio disables Nagle's algorithm only for a socket with an explicit protocol; otherwise a response takes 40 ms.
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        print(listener.getsockname()[1], flush=True)  # noqa: T201 - the parent process reads it
        config = uvicorn.Config(create_app(path, UUID(user_id)), access_log=False, log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
