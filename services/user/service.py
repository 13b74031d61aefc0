"""The user service: signs users up, and shows and changes their profiles."""

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from bus import Bus
from infra.clock import Clock
from infra.db import Database, Transaction
from models.base import utc
from models.email import normalise_email
from models.name import normalise_name
from models.user import User, UserCreated, UserUpdated
from services.user.errors import EmailTaken, UserChanged, UserNotFound


class SecretIssuer(Protocol):
    """The service that owns the API secrets."""

    async def issue_first(self, user_id: UUID) -> str:
        """Issue a secret with every scope, for a new user."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SignUp:
    """A new user and that user's first secret, which is not stored."""

    user: User
    secret: str


class UserService:
    """Owns the users."""

    def __init__(self, bus: Bus, db: Database, clock: Clock, secrets: SecretIssuer) -> None:
        self._bus = bus
        self._db = db
        self._clock = clock
        self._secrets = secrets

    async def sign_up(self, email: str, name: str) -> SignUp:
        """Create a user with a first secret. The sync listeners of `UserCreated` run in the same transaction.

        Raises:
            InvalidEmail: `email` is not an email address.
            InvalidName: `name` is invalid.
            EmailTaken: another user has this email address.
        """
        async with self._db.transaction():
            user = await self.create(email, name)
            secret = await self._secrets.issue_first(user.id)
        return SignUp(user=user, secret=secret)

    async def create(self, email: str, name: str) -> User:
        """Create a user without a secret. Raises the errors of `sign_up`."""
        now = utc(self._clock.time())
        user = User(email=normalise_email(email), name=normalise_name(name), version=1, created_at=now, updated_at=now)
        async with self._db.transaction() as tx:
            tx.session.add(user)
            await _flush(tx, user.email)
            await self._bus.publish(UserCreated(user_id=user.id, email=user.email, name=user.name))
        return user

    async def get(self, user_id: UUID) -> User:
        """Return a user; raise `UserNotFound`."""
        async with self._db.read() as session:
            user = await session.get(User, user_id)
        if user is None:
            raise UserNotFound(str(user_id))
        return user

    async def update(
        self, user_id: UUID, *, name: str | None = None, email: str | None = None, expected_version: int | None = None
    ) -> User:
        """Change the given fields of a user.

        Raises:
            InvalidEmail: `email` is not an email address.
            InvalidName: `name` is invalid.
            EmailTaken: another user has this email address.
            UserChanged: the user is not at `expected_version`.
            UserNotFound: the user does not exist.
        """
        async with self._db.transaction() as tx:
            user = await tx.session.scalar(select(User).where(User.id == user_id).with_for_update())
            if user is None:
                raise UserNotFound(str(user_id))
            if expected_version not in {None, user.version}:
                raise UserChanged(f"the user is at version {user.version} now")
            user.name = user.name if name is None else normalise_name(name)
            user.email = user.email if email is None else normalise_email(email)
            if not tx.session.is_modified(user):
                return user
            user.version += 1
            user.updated_at = utc(self._clock.time())
            await _flush(tx, user.email)
            await self._bus.publish(UserUpdated(user_id=user.id, email=user.email, name=user.name))
        return user


async def _flush(tx: Transaction, email: str) -> None:
    # The unique index decides, not a query beforehand: two sign-ups may run concurrently.
    try:
        await tx.session.flush()
    except IntegrityError as error:
        raise EmailTaken(email) from error
