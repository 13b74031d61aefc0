"""The memory driver: a queue in one process, for tests and for `beneath start all` without a durable queue.

It imports nothing of `infra.db` and of the other drivers.
"""

from infra.mq.drivers.memory.queue import MemoryQueue

__all__ = ["MemoryQueue"]
