"""A separate process on a queue: `python -m tests.infra.mq.worker_process FILE MODE`; it prints its results."""

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

from infra.clock import SystemClock
from infra.db import Database
from infra.mq.drivers.sql import SqlQueue
from infra.mq.drivers.sql.sqlite import mailboxes, publishing
from tests.infra.mq.acting import consumer, done, ids, message


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201  # its parent listens


async def hold(queue: SqlQueue) -> None:
    """Claim three deliveries and a mailbox, and then wait to be killed."""
    worker = await consumer(queue, f"holder-{os.getpid()}")
    claims = await worker.fetch({"work": 3, "mail": 1}, wait=5)
    await worker.isolate(claims[0])
    say(*ids(claims))
    await asyncio.Event().wait()


async def drain(queue: SqlQueue) -> None:
    """Handle the backlog, at the same time as another process does."""
    worker = await consumer(queue, f"drainer-{os.getpid()}")
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    handled: list[str] = []
    while claims := await worker.fetch({"work": 7, "mail": 3}, wait=0):
        handled += [f"{claim.subscription}:{claim.fence}:{it}" for claim in claims for it in ids([claim])]
        await worker.settle(done(claims))
    say(*handled)
    await worker.close()


async def wait(queue: SqlQueue) -> None:
    """Wait for a single delivery."""
    worker = await consumer(queue, f"waiter-{os.getpid()}")
    say("ready")
    claims = await worker.fetch({"work": 1}, wait=30)
    await worker.settle(done(claims))
    say(*ids(claims))
    await worker.close()


async def die(queue: SqlQueue) -> None:
    """Kill this process between the statements of a publish, with another publish in the same group."""
    mailbox = mailboxes.open_mailboxes

    def die_now(db: sqlite3.Connection, *args: object) -> None:
        mailbox(db, *args)  # type: ignore[arg-type]  # handed on as it came
        say("dying")
        os.kill(os.getpid(), signal.SIGKILL)

    publishing.__dict__["open_mailboxes"] = die_now
    await asyncio.gather(queue.publish([message("first")]), queue.publish([message("second", key="k")]))


async def broadcast(queue: SqlQueue) -> None:
    """Broadcast each line of standard input."""
    say("ready")
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        await queue.broadcast([line.encode()], origin=str(os.getpid()))
        say(line)


async def main(path: Path, mode: str) -> None:
    db = Database(f"sqlite:///{path}")
    await db.open()
    queue = SqlQueue(db, clock=SystemClock(), registry_ttl=0)
    await queue.open()
    await {"hold": hold, "drain": drain, "wait": wait, "die": die, "broadcast": broadcast}[mode](queue)
    await queue.close()
    await db.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
