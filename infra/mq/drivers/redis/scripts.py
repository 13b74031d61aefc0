"""The scripts that change the queue's state, each in one atomic step on the server."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the server gets it."""

    name: str
    source: bytes
    sha: str


def _script(name: str, *parts: str, flags: str = "allow-oom") -> Script:
    """Put a script together from its parts.

    What only frees memory, or moves what is there, must also work when the memory is full: otherwise nothing could
    ever be handled and deleted again.
    """
    folder = files("infra.mq.drivers.redis.lua")
    shebang = f"#!lua flags={flags}\n" if flags else "#!lua\n"
    text = shebang + "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("common", *parts, name))
    source = text.encode()
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Scripts:
    """All of them."""

    adopt: Script
    send: Script
    publish: Script
    claim: Script
    settle: Script
    isolate: Script
    recover: Script
    leave: Script
    join: Script
    renew: Script
    abandon: Script
    unpark: Script
    register: Script
    cancel: Script
    broadcast: Script
    receive: Script
    stats: Script
    retry_dead: Script
    discard_dead: Script
    unblock: Script
    retire: Script


@cache
def scripts() -> Scripts:
    """Return the scripts; they are read once per process."""
    return Scripts(
        adopt=_script("adopt", "past", "mailbox"),
        send=_script("send", "sending", flags=""),
        publish=_script("publish", "mailbox", "due", "sending", flags=""),
        claim=_script("claim", "past", "mailbox", "due"),
        settle=_script("settle", "past", "mailbox", "due", "dead"),
        isolate=_script("isolate", "past", "mailbox"),
        recover=_script("recover", "past", "mailbox", "due", "taking"),
        leave=_script("leave", "past", "mailbox", "due", "taking"),
        join=_script("join"),
        renew=_script("renew"),
        abandon=_script("abandon"),
        unpark=_script("unpark", "mailbox", "due"),
        register=_script("register"),
        cancel=_script("cancel"),
        broadcast=_script("broadcast", flags=""),
        receive=_script("receive"),
        stats=_script("stats", "mailbox", "due"),
        retry_dead=_script("retry_dead", "mailbox", "due"),
        discard_dead=_script("discard_dead"),
        unblock=_script("unblock", "past", "mailbox", "due", "dead"),
        retire=_script("retire", "past", "mailbox", "due", "dead"),
    )
