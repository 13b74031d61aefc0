"""The queue in Redis or Valkey: durable as the server is, shared by processes on many machines."""

from infra.mq.drivers.redis.queue import RedisQueue

__all__ = ["RedisQueue"]
