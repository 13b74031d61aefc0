"""The idempotency service: carries out a request with an idempotency key once, and repeats its response."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from infra.clock import Clock
from infra.db import Database
from models.base import utc
from models.idempotency import IdempotencyKey
from services.idempotency.errors import AnswerNotKept, KeyReused

KEPT: Final = timedelta(hours=24)
_SWEEP: Final = 10
"""Expired keys that each new key deletes, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response to a request with an idempotency key."""

    status: int
    headers: Mapping[str, str]
    body: str
    replayed: bool = False
    """Whether this is a stored response, and the request was not carried out again."""


class _InUse(Exception):
    """The key already has a row."""


class IdempotencyService:
    """Owns the responses that are stored for 24 hours, by user and key."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def answer(
        self, user_id: UUID, key: str, request: bytes, work: Callable[[], Awaitable[Answer]], *, keep: bool = True
    ) -> Answer:
        """Return the result of `work`, or the stored result of an earlier call with this user, key and request.

        `work` and its stored result are one transaction: if it raises, nothing is changed, and the key is free again.
        Without `keep` the result is not stored, only the fact that the request was carried out.

        Raises:
            KeyReused: the key was used for another request.
            AnswerNotKept: the request was carried out before, without `keep`.
        """
        fingerprint = hashlib.sha256(request).hexdigest()
        while True:
            try:
                return await self._carry_out(user_id, key, fingerprint, work, keep=keep)
            except _InUse:
                if (row := await self._find(user_id, key)) is not None:
                    return _replay(row, fingerprint)
                # The row has expired or was deleted since. The key is free, and `work` was not called.

    async def _carry_out(
        self, user_id: UUID, key: str, fingerprint: str, work: Callable[[], Awaitable[Answer]], *, keep: bool
    ) -> Answer:
        async with self._db.transaction() as tx:
            row = await self._claim(tx.session, user_id, key, fingerprint)
            answer = await work()
            row.status = answer.status
            row.headers = dict(answer.headers)
            row.body = answer.body if keep else None
        return answer

    async def _claim(self, session: AsyncSession, user_id: UUID, key: str, fingerprint: str) -> IdempotencyKey:
        now = utc(self._clock.time())
        await self._sweep(session)
        row = IdempotencyKey(user_id=user_id, key=key, fingerprint=fingerprint, headers={}, created_at=now)
        session.add(row)
        try:
            # The second of two concurrent requests waits here until the first has ended.
            await session.flush()
        except IntegrityError as error:
            raise _InUse from error
        return row

    async def _find(self, user_id: UUID, key: str) -> IdempotencyKey | None:
        """Return the key's row, or None; an expired row is deleted at once, before the sweep reaches it."""
        async with self._db.read() as session:
            row = await session.get(IdempotencyKey, (user_id, key))
        if row is None or row.created_at > self._expired_at():
            return row
        mine = (IdempotencyKey.user_id == user_id, IdempotencyKey.key == key)
        async with self._db.transaction() as tx:
            await tx.session.execute(delete(IdempotencyKey).where(*mine, IdempotencyKey.created_at == row.created_at))
        return None

    async def _sweep(self, session: AsyncSession) -> None:
        expired = (
            select(IdempotencyKey.user_id, IdempotencyKey.key)
            .where(IdempotencyKey.created_at <= self._expired_at())
            .order_by(IdempotencyKey.created_at)
            .limit(_SWEEP)
            # Two concurrent requests delete different rows, and neither waits for the other's transaction.
            .with_for_update(skip_locked=True)
        )
        if rows := (await session.execute(expired)).all():
            identity = tuple_(IdempotencyKey.user_id, IdempotencyKey.key)
            await session.execute(delete(IdempotencyKey).where(identity.in_([tuple(row) for row in rows])))

    def _expired_at(self) -> datetime:
        return utc(self._clock.time()) - KEPT


def _replay(row: IdempotencyKey, fingerprint: str) -> Answer:
    if row.fingerprint != fingerprint:
        raise KeyReused("this idempotency key was used for another request")
    if row.status is None or row.body is None:
        raise AnswerNotKept("the request was carried out before; its response contained a secret and was not stored")
    return Answer(status=row.status, headers=row.headers, body=row.body, replayed=True)
