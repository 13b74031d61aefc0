"""What a simulated application publishes."""

import msgspec


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Has a place in its key's order."""

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """Is delayed; alone in its key."""

    key: str
    n: int


class Chime(msgspec.Struct, frozen=True, kw_only=True):
    """Is broadcast."""

    key: str
    n: int
