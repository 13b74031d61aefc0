"""Users: sign-up and profile."""

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
    """Whoever keeps the API secrets."""

    async def issue_first(self, user_id: UUID) -> str:
        """Return a new secret with every scope, for a user without any."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SignUp:
    """A new user, and the secret to act as that user; it cannot be shown again."""

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
        """Create a user with a first secret; what `UserCreated` sets off synchronously is in the same transaction.

        Raises:
            InvalidEmail: it is not an email address.
            InvalidName: `name` is not a name.
            EmailTaken: another user has it.
        """
        async with self._db.transaction():
            user = await self.create(email, name)
            secret = await self._secrets.issue_first(user.id)
        return SignUp(user=user, secret=secret)

    async def create(self, email: str, name: str) -> User:
        """Create a user who has no secret yet; raises what `sign_up` does."""
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
        """Change what is given, and nothing else.

        Raises:
            InvalidEmail: `email` is not an email address.
            InvalidName: `name` is not a name.
            EmailTaken: another user has it.
            UserChanged: the user is not at `expected_version`.
            UserNotFound: there is no such user.
        """
        async with self._db.transaction() as tx:
            user = await tx.session.scalar(select(User).where(User.id == user_id).with_for_update())
            if user is None:
                raise UserNotFound(str(user_id))
            if expected_version not in {None, user.version}:
                raise UserChanged(f"it is at version {user.version} now")
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
    # The unique index decides, not a look beforehand: two sign-ups may run at once.
    try:
        await tx.session.flush()
    except IntegrityError as error:
        raise EmailTaken(email) from error
