"""The errors of a queue or a database that stores nothing."""

from sqlalchemy.exc import SQLAlchemyError

from infra.db import DatabaseError
from infra.failures import describe
from infra.mq import QueueError

STORE_ERRORS = (QueueError, DatabaseError, SQLAlchemyError)
"""What a queue or a database raises that does not store an event."""


def reason_of(error: Exception) -> str:
    """Return an error's text in one line, with its class if it is not one of ours."""
    return str(error) if isinstance(error, QueueError | DatabaseError) else describe(error)
