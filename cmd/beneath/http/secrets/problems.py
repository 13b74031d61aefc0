"""The problems of the secret service's errors."""

from collections.abc import Mapping
from typing import Final

from beneath.http.core.problems import INSUFFICIENT_SCOPE, INVALID, NOT_FOUND, ProblemType
from models.name import InvalidName
from services.secret.errors import ScopeNotGranted, SecretNotFound

PROBLEMS: Final[Mapping[type[Exception], ProblemType]] = {
    InvalidName: INVALID,
    ScopeNotGranted: INSUFFICIENT_SCOPE,
    SecretNotFound: NOT_FOUND,
}
