"""The memory driver: the whole contract in one process, for tests and for `start all` without a database."""

from infra.mq.drivers.memory.queue import MemoryQueue

__all__ = ["MemoryQueue"]
