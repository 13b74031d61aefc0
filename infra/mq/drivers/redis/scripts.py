"""The Lua scripts that change the queue's state, each in one atomic step on the server."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script, complete with the parts that it uses."""

    name: str
    source: bytes
    sha: str


def _script(name: str, *parts: str, flags: str = "allow-oom", common: bool = True) -> Script:
    """Return the script `name`, with its parts before it.

    The flag `allow-oom` is for scripts that free memory or move data: they must work when the memory is full, since
    otherwise no delivery could be handled and deleted.
    """
    folder = files("infra.mq.drivers.redis.lua")
    shebang = f"#!lua flags={flags}\n" if flags else "#!lua\n"
    everything = ("base", *(("common",) if common else ()), *parts, name)
    text = shebang + "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in everything)
    source = text.encode()
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Scripts:
    """All scripts of the driver."""

    stop_claims: Script
    scan_owned: Script
    check_owned: Script
    read_owned: Script
    send_one: Script
    send: Script
    publish: Script
    claim: Script
    settle: Script
    isolate: Script
    find_dead: Script
    audit: Script
    take: Script
    forget_workers: Script
    join: Script
    renew: Script
    abandon: Script
    unpark: Script
    register: Script
    cancel: Script
    broadcast: Script
    receive: Script
    stats: Script
    sum_boxes: Script
    live_workers: Script
    now: Script
    retry_dead: Script
    discard_dead: Script
    unblock: Script
    retire: Script
    retire_step: Script


@cache
def scripts() -> Scripts:
    """Return the scripts; they are read once per process."""
    return Scripts(
        stop_claims=_script("stop_claims", common=False),
        scan_owned=_script("scan_owned"),
        check_owned=_script("check_owned", "past", "mailbox"),
        read_owned=_script("read_owned", "past", "mailbox"),
        send_one=_script("send_one", "hand_over", "tidy_ids", flags="", common=False),
        send=_script("send", "ids", "tidy_ids", flags=""),
        publish=_script("publish", "mailbox", "due", "ids", "tidy_ids", "hand_over", flags=""),
        claim=_script("claim", "past", "mailbox", "due"),
        settle=_script("settle", "past", "mailbox", "due", "dead", "parking"),
        isolate=_script("isolate", "past", "mailbox"),
        audit=_script("audit", common=False),
        find_dead=_script("find_dead", common=False),
        take=_script("take", "past", "mailbox", "due"),
        forget_workers=_script("forget_workers", common=False),
        join=_script("join"),
        renew=_script("renew"),
        abandon=_script("abandon"),
        unpark=_script("unpark", "mailbox", "due", "parking"),
        register=_script("register"),
        cancel=_script("cancel"),
        broadcast=_script("broadcast", flags=""),
        receive=_script("receive"),
        stats=_script("stats", "mailbox", "parking"),
        sum_boxes=_script("sum_boxes", "mailbox"),
        live_workers=_script("live_workers"),
        now=_script("now", common=False),
        retry_dead=_script("retry_dead", "mailbox", "due"),
        discard_dead=_script("discard_dead"),
        unblock=_script("unblock", "past", "mailbox", "due", "dead"),
        retire=_script("retire"),
        retire_step=_script("retire_step", "past", "mailbox", "dead", "parking"),
    )
