"""Errors that misbehave themselves, as the code of a user or of a native library may raise them."""


class PanicException(BaseException):
    """The exception of a native library that panics."""


class Wordless(Exception):
    """An error whose text cannot be read."""

    def __str__(self) -> str:
        raise OSError("no text")

    __repr__ = __str__


class ExitingText(Exception):
    """An error whose text exits the process."""

    def __str__(self) -> str:
        raise SystemExit(9)
