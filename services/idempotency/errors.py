"""Errors that the idempotency service raises."""


class IdempotencyError(Exception):
    """Base of this service's errors."""


class KeyReused(IdempotencyError):
    """The key was used for another request."""


class AnswerNotKept(IdempotencyError):
    """The request was carried out before, and its response was not stored."""
