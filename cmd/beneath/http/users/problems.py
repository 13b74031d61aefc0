"""The problems of the user service's errors."""

from collections.abc import Mapping
from typing import Final

from beneath.http.core.problems import CHANGED, INVALID, NOT_FOUND, ProblemType
from models.email import InvalidEmail
from models.name import InvalidName
from services.user.errors import EmailTaken, UserChanged, UserNotFound

EMAIL_TAKEN = ProblemType("email-taken", 409, "Another user has this email")

PROBLEMS: Final[Mapping[type[Exception], ProblemType]] = {
    EmailTaken: EMAIL_TAKEN,
    InvalidEmail: INVALID,
    InvalidName: INVALID,
    UserChanged: CHANGED,
    UserNotFound: NOT_FOUND,
}
