"""Whether the server is one to trust messages to."""

import contextlib

import structlog

from infra.mq.drivers.redis.errors import Misconfigured
from infra.mq.drivers.redis.keys import Keys
from infra.mq.drivers.redis.link import Link
from infra.mq.errors import QueueError, QueueIndeterminate, QueueUnavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

OLDEST = (7, 0)
"""The oldest Redis whose scripts can do what is needed. Valkey calls itself 7.2 or newer."""

_TRIAL = "#!lua flags=allow-oom\nreturn redis.call('HSETNX', KEYS[1], 'n', '0')"


async def inspect(link: Link, keys: Keys) -> None:
    """Refuse a server that would lose messages or cannot keep them; warn of one that forgets them when it restarts.

    Raises:
        Misconfigured: with one line that says why and what to do.
        QueueUnavailable: the server did not answer.
        QueueRejected: it knows nothing of what is needed.
    """
    where = f"Redis at {link.where}"
    info = _parse(await link.ask("INFO", "server")) | _parse(await link.ask("INFO", "replication"))
    version = info.get("redis_version", "0")
    if tuple(int(it) for it in version.split(".")[:2] if it.isdigit()) < OLDEST:
        raise Misconfigured(f"{where} is version {version}: the queue needs Redis 7.0 or newer, or Valkey")
    if info.get("role") == "slave":
        raise Misconfigured(f"{where} is a read-only replica: put the primary's address into mq.redis.url")
    memory = _parse(await link.ask("INFO", "memory"))
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys"):
        raise Misconfigured(
            f"{where} deletes keys when its memory is full (maxmemory-policy {policy}), and messages with them: "
            "set maxmemory-policy to noeviction"
        )
    await _try_to_write(link, keys)
    await _warn_if_forgetful(link, where)


async def incarnation(link: Link) -> str:
    """Return what is another one whenever the server was started anew, or another server has taken its place."""
    info = _parse(await link.ask("INFO", "server"))
    return info.get("run_id", "")


async def largest_value(link: Link) -> int | None:
    """Return how large a value may be, in bytes, if the server says so."""
    with contextlib.suppress(QueueError):
        # Not every user may read the configuration.
        answer = await link.ask("CONFIG", "GET", "proto-max-bulk-len")
        return int(answer[1]) if answer else None
    return None


async def _try_to_write(link: Link, keys: Keys) -> None:
    """Find out at the start, and not at the first publish, whether this user may do what is needed."""
    try:
        # Also when its memory is full: only workers make room.
        await link.command("EVAL", _TRIAL, 1, keys.of("meta"))
        await link.command("PUBLISH", keys.changes, "")
    except QueueIndeterminate as error:
        raise QueueUnavailable(str(error)) from error


async def _warn_if_forgetful(link: Link, where: str) -> None:
    persistence = _parse(await link.ask("INFO", "persistence"))
    if persistence.get("aof_enabled") == "1":
        return
    saves = b""
    with contextlib.suppress(QueueError):
        # Not every user may read the configuration.
        answer = await link.ask("CONFIG", "GET", "save")
        saves = answer[1] if answer else b""
    risk = "a crash loses messages since the last snapshot" if saves else "a restart loses every message"
    log.warning("append-only file disabled", server=where, risk=risk, fix="set appendonly yes")


def _parse(info: bytes) -> dict[str, str]:
    lines = (it.partition(":") for it in info.decode("utf-8", "replace").splitlines() if ":" in it)
    return {name: value.strip() for name, _, value in lines}
