"""The memory driver: a queue in one process, for tests and for `beneath start all` without a durable queue."""

from infra.mq.drivers.memory.queue import MemoryQueue

__all__ = ["MemoryQueue"]
