"""Idempotency keys: a request is carried out once, however often it is sent."""

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
"""Outdated keys that each new one clears away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: str
    replayed: bool = False
    """It was given before, and nothing was done this time."""


class _InUse(Exception):
    """The key has a row already."""


class IdempotencyService:
    """Owns the answers that are kept for 24 hours, by user and key."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def answer(
        self, user_id: UUID, key: str, request: bytes, work: Callable[[], Awaitable[Answer]], *, keep: bool = True
    ) -> Answer:
        """Return what `work` returns, or what it returned for the same user, key and request before.

        `work` and the memory of it are one transaction: if it raises, nothing was done, and the key is free again.
        Without `keep` only that it was done is remembered, not the answer.

        Raises:
            KeyReused: the key was used for another request.
            AnswerNotKept: it was done before, without `keep`.
        """
        fingerprint = hashlib.sha256(request).hexdigest()
        while True:
            try:
                return await self._carry_out(user_id, key, fingerprint, work, keep=keep)
            except _InUse:
                if (row := await self._find(user_id, key)) is not None:
                    return _replay(row, fingerprint)
                # It was outdated, or was cleared away since: the key is free, and `work` has not begun.

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
            # Of two at once the second waits here for the first to end, and then finds the key in use or free.
            await session.flush()
        except IntegrityError as error:
            raise _InUse from error
        return row

    async def _find(self, user_id: UUID, key: str) -> IdempotencyKey | None:
        """Return the key's row if its time is not over; otherwise delete it, wherever the sweep has got to."""
        async with self._db.read() as session:
            row = await session.get(IdempotencyKey, (user_id, key))
        if row is None or row.created_at > self._outdated_at():
            return row
        mine = (IdempotencyKey.user_id == user_id, IdempotencyKey.key == key)
        async with self._db.transaction() as tx:
            await tx.session.execute(delete(IdempotencyKey).where(*mine, IdempotencyKey.created_at == row.created_at))
        return None

    async def _sweep(self, session: AsyncSession) -> None:
        outdated = (
            select(IdempotencyKey.user_id, IdempotencyKey.key)
            .where(IdempotencyKey.created_at <= self._outdated_at())
            .order_by(IdempotencyKey.created_at)
            .limit(_SWEEP)
            # Two requests at once clear different rows away, and neither waits for the other's work.
            .with_for_update(skip_locked=True)
        )
        if rows := (await session.execute(outdated)).all():
            identity = tuple_(IdempotencyKey.user_id, IdempotencyKey.key)
            await session.execute(delete(IdempotencyKey).where(identity.in_([tuple(row) for row in rows])))

    def _outdated_at(self) -> datetime:
        return utc(self._clock.time()) - KEPT


def _replay(row: IdempotencyKey, fingerprint: str) -> Answer:
    if row.fingerprint != fingerprint:
        raise KeyReused("this idempotency key was used for another request")
    if row.status is None or row.body is None:
        raise AnswerNotKept("this was done before; its answer had a secret in it and was not kept")
    return Answer(status=row.status, headers=row.headers, body=row.body, replayed=True)
