"""The errors of the queue and the database, as publishing and settling handle them."""

from sqlalchemy.exc import SQLAlchemyError

from infra.db import DatabaseError
from infra.failures import describe
from infra.mq import QueueError

STORE_ERRORS = (QueueError, DatabaseError, SQLAlchemyError)
"""The errors of a queue or database that has not stored an event, or may not have stored it."""


def reason_of(error: Exception) -> str:
    """Return an error's text in one line, with its class unless it is a QueueError or DatabaseError."""
    return str(error) if isinstance(error, QueueError | DatabaseError) else describe(error)
