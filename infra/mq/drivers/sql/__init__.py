"""The SQL driver: a queue in the application's database, which joins its transactions. It may import `infra.db`."""

from infra.mq.drivers.sql.queue import SqlQueue

__all__ = ["SqlQueue"]
