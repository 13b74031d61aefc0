"""The queue in the application's own database: durable, shared by processes, part of its transactions."""

from infra.mq.drivers.sql.queue import SqlQueue

__all__ = ["SqlQueue"]
