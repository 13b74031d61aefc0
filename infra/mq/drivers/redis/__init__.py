"""The queue in Redis or Valkey: durable as the server is, shared by processes on many machines.

It imports nothing of `infra.db` and of the other drivers.
"""

from infra.mq.drivers.redis.queue import RedisQueue

__all__ = ["RedisQueue"]
