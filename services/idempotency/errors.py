"""Why an idempotency key gets no answer."""


class IdempotencyError(Exception):
    """Base of this service's errors."""


class KeyReused(IdempotencyError):
    """The key was used for another request."""


class AnswerNotKept(IdempotencyError):
    """The request was carried out before, and what it answered must not be kept."""
