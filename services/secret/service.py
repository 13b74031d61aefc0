"""The secret service: issues, lists and revokes API secrets, and authenticates by them."""

import hashlib
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import select

from bus import Bus
from infra.clock import Clock
from infra.db import Database
from models.base import utc
from models.name import normalise_name
from models.secret import Scope, Secret, SecretRevoked
from models.user import User, UserUpdated
from services.secret.cache import Principal, PrincipalCache
from services.secret.errors import InvalidSecret, ScopeNotGranted, SecretNotFound

PREFIX: Final = "bnth_"
"""The prefix by which people and leak scanners recognize a secret of this application."""

CACHE_SECONDS: Final = 30.0
"""Seconds for which a process may accept a revoked secret if the broadcast of its revocation is lost."""

ALL_SCOPES: Final = frozenset(Scope)

_HINT_LENGTH = len(PREFIX) + 4
_TOKEN = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedSecret:
    """A new secret; `token` is the text that the client sends, and is not stored."""

    secret: Secret
    token: str


class SecretService:
    """Owns the API secrets, and authenticates requests by them."""

    def __init__(self, bus: Bus, db: Database, clock: Clock) -> None:
        self._bus = bus
        self._db = db
        self._clock = clock
        self._cache = PrincipalCache(clock, CACHE_SECONDS)
        bus.add_broadcast_listener(self.forget, on_gap=self._cache.clear)

    async def forget(self, event: SecretRevoked | UserUpdated) -> None:
        """Remove the principals that the event makes stale from this process's cache."""
        if isinstance(event, SecretRevoked):
            self._cache.drop(lambda principal: principal.secret_id == event.secret_id)
        else:
            self._cache.drop(lambda principal: principal.user_id == event.user_id)

    async def authenticate(self, token: str) -> Principal:
        """Return the principal of a secret; raise `InvalidSecret`.

        A revocation takes effect at once in the process that revokes, in other processes when its broadcast arrives,
        and after 30 seconds if the broadcast is lost.
        """
        if not _TOKEN.fullmatch(token):
            raise InvalidSecret
        # The timing of a look-up by hash reveals nothing: a client that can choose the hash has the secret already.
        digest = _digest(token)
        if principal := self._cache.get(digest):
            return principal
        generation = self._cache.generation
        principal = await self._load(digest)
        self._cache.put(digest, principal, generation)
        return principal

    async def issue_first(self, user_id: UUID) -> str:
        """Issue a secret with every scope, for a new user."""
        return (await self.issue(user_id, name="first", scopes=ALL_SCOPES)).token

    async def issue(
        self, user_id: UUID, *, name: str, scopes: Collection[Scope], within: Collection[Scope] = ALL_SCOPES
    ) -> IssuedSecret:
        """Issue a secret for a user.

        Raises:
            InvalidName: `name` is invalid.
            ScopeNotGranted: a scope is not in `within`, the scopes of the secret that authenticated the request.
        """
        if excess := sorted(set(scopes) - set(within)):
            raise ScopeNotGranted(
                f"this secret lacks the scope {', '.join(excess)}, so it cannot issue a secret with it"
            )
        token = PREFIX + secrets.token_urlsafe(32)
        secret = Secret(
            user_id=user_id,
            name=normalise_name(name),
            hint=token[:_HINT_LENGTH],
            token_hash=_digest(token),
            scopes=sorted(scopes),
            created_at=utc(self._clock.time()),
        )
        async with self._db.transaction() as tx:
            tx.session.add(secret)
            await tx.session.flush()
        return IssuedSecret(secret=secret, token=token)

    async def list_secrets(self, user_id: UUID, *, after: UUID | None = None, limit: int = 100) -> Sequence[Secret]:
        """Return the user's valid secrets after the id `after`, oldest first."""
        query = select(Secret).where(Secret.user_id == user_id, Secret.revoked_at.is_(None))
        if after is not None:
            query = query.where(Secret.id > after)
        async with self._db.read() as session:
            return (await session.scalars(query.order_by(Secret.id).limit(limit))).all()

    async def revoke(self, user_id: UUID, secret_id: UUID) -> None:
        """Revoke a secret; repeating it changes nothing. Raises `SecretNotFound`."""
        query = select(Secret).where(Secret.id == secret_id, Secret.user_id == user_id).with_for_update()
        async with self._db.transaction() as tx:
            secret = await tx.session.scalar(query)
            if secret is None:
                raise SecretNotFound(str(secret_id))
            if secret.revoked_at is None:
                secret.revoked_at = utc(self._clock.time())
                await self._bus.publish(SecretRevoked(secret_id=secret.id, user_id=user_id))

    async def _load(self, digest: str) -> Principal:
        query = (
            select(Secret.id, Secret.scopes, Secret.user_id, User.email, User.name)
            .join(User, User.id == Secret.user_id)
            .where(Secret.token_hash == digest, Secret.revoked_at.is_(None))
        )
        async with self._db.read() as session:
            row = (await session.execute(query)).one_or_none()
        if row is None:
            raise InvalidSecret
        scopes = frozenset(Scope(scope) for scope in row.scopes)
        return Principal(user_id=row.user_id, email=row.email, name=row.name, secret_id=row.id, scopes=scopes)


def _digest(token: str) -> str:
    # A slow hash protects guessable passwords; a token has 256 random bits.
    return hashlib.sha256(token.encode()).hexdigest()
