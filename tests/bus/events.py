"""Events that the tests of the bus publish."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID

import msgspec

SOME_ID = UUID("0193f0de-5bcd-7b3e-8000-0123456789ab")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCreated:
    user_id: UUID = SOME_ID
    email: str = "ada@example.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserUpdated:
    user_id: UUID = SOME_ID
    at: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposited:
    ordering_scope: ClassVar[str] = "account"

    account: str
    amount: int

    def ordering_key(self) -> str:
        return self.account


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    ordering_scope: ClassVar[str] = "account"

    account: str
    amount: int

    def ordering_key(self) -> str:
        return self.account


class Ticked(msgspec.Struct, frozen=True):
    event_name: ClassVar[str] = "clock.ticked"
    n: int
