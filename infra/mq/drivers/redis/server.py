"""Checks of the server at the start: version, role, configuration and permissions."""

import contextlib

import structlog

from infra.mq.drivers.redis.errors import Misconfigured
from infra.mq.drivers.redis.keys import Keys
from infra.mq.drivers.redis.link import Link
from infra.mq.errors import QueueError, QueueIndeterminate, QueueUnavailable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

OLDEST = (7, 0)
"""The oldest version of Redis with the script features that the driver uses. Valkey reports 7.2 or newer."""

_TRIAL = "#!lua flags=allow-oom\nreturn redis.call('HSETNX', KEYS[1], 'n', '0')"


async def check_server(link: Link, keys: Keys) -> None:
    """Refuse a server that cannot store messages or may delete them; warn of one that loses them when it restarts.

    Raises:
        Misconfigured: the server is refused; the message says why, and what to do.
        QueueUnavailable: the server did not answer.
        QueueRejected: the server lacks a command.
    """
    where = f"Redis at {link.where}"
    info = _parse(await link.query("INFO", "server")) | _parse(await link.query("INFO", "replication"))
    version = info.get("redis_version", "0")
    if tuple(int(it) for it in version.split(".")[:2] if it.isdigit()) < OLDEST:
        raise Misconfigured(f"{where} is version {version}: the queue needs Redis 7.0 or newer, or Valkey")
    if info.get("role") == "slave":
        raise Misconfigured(f"{where} is a read-only replica: set the primary's address in mq.redis.url")
    memory = _parse(await link.query("INFO", "memory"))
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys"):
        raise Misconfigured(
            f"{where} deletes keys when its memory is full (maxmemory-policy {policy}), and messages with them: "
            "set maxmemory-policy to noeviction"
        )
    await _try_to_write(link, keys)
    await _warn_without_aof(link, where)


async def run_id(link: Link) -> str:
    """Return the server's run id, which changes when the server restarts or is replaced."""
    info = _parse(await link.query("INFO", "server"))
    return info.get("run_id", "")


async def largest_value(link: Link) -> int | None:
    """Return the server's limit for the size of a value, in bytes; None if this user may not read it."""
    with contextlib.suppress(QueueError):
        # The user may lack the permission to read the configuration.
        answer = await link.query("CONFIG", "GET", "proto-max-bulk-len")
        return int(answer[1]) if answer else None
    return None


async def _try_to_write(link: Link, keys: Keys) -> None:
    """Check at the start, rather than at the first publish, that the user may write and publish."""
    try:
        # With `allow-oom`: a process must start when the memory is full, since workers free it.
        await link.command("EVAL", _TRIAL, 1, keys.of("meta"))
        await link.command("PUBLISH", keys.changes, "")
    except QueueIndeterminate as error:
        raise QueueUnavailable(str(error)) from error


async def _warn_without_aof(link: Link, where: str) -> None:
    persistence = _parse(await link.query("INFO", "persistence"))
    if persistence.get("aof_enabled") == "1":
        return
    saves = b""
    with contextlib.suppress(QueueError):
        # The user may lack the permission to read the configuration.
        answer = await link.query("CONFIG", "GET", "save")
        saves = answer[1] if answer else b""
    risk = "a crash loses messages since the last snapshot" if saves else "a restart loses every message"
    log.warning("append-only file disabled", server=where, risk=risk, fix="set appendonly yes")


def _parse(info: bytes) -> dict[str, str]:
    lines = (it.partition(":") for it in info.decode("utf-8", "replace").splitlines() if ":" in it)
    return {name: value.strip() for name, _, value in lines}
