"""The problems of the idempotency service's errors."""

from collections.abc import Mapping
from typing import Final

from beneath.http.core.problems import ProblemType
from services.idempotency.errors import AnswerNotKept, KeyReused

ALREADY_DONE = ProblemType("already-done", 409, "The request was carried out before")
KEY_REUSED = ProblemType("idempotency-key-reused", 409, "The idempotency key belongs to another request")

PROBLEMS: Final[Mapping[type[Exception], ProblemType]] = {
    AnswerNotKept: ALREADY_DONE,
    KeyReused: KEY_REUSED,
}
