"""A publisher that continues while its database is repeatedly unavailable, and records the end of each transaction."""

import asyncio
from random import Random

from sqlalchemy import insert

from infra.db import CommitIndeterminate, DatabaseUnavailable, TransactionRolledBack
from infra.mq import QueueUnavailable
from tests.torture.events import Job, Step
from tests.torture.opening import Opened, Plan, opened
from tests.torture.persistent import insist
from tests.torture.rows import LEDGER

KEPT, DROPPED, UNKNOWN = "kept", "dropped", "unknown"
"""The end of a transaction, as reported to its program."""

DIRECT = "direct-"
"""Prefix of the keys of jobs that are published outside of transactions."""

PAUSE = 0.05
"""Default of the maximum seconds between two transactions of a key."""


async def run(plan: Plan) -> None:
    """For each key commit entries in one task and publish jobs in another, until the gate opens."""
    keys, pause = plan.arguments["keys"], plan.arguments.get("pause", PAUSE)
    assert isinstance(keys, list)
    assert isinstance(pause, float)
    async with opened(plan) as site:
        await asyncio.gather(*(work(site, key, pause) for key in keys for work in (book, hand_over)))


async def book(site: Opened, key: str, pause: float) -> None:
    """Run one transaction after another, each with a new number."""
    random, n = Random(key), 0
    while not site.gate.exists():
        n += 1
        site.journal.write("note", key=key, n=n, text=await outcome(site, key, n))
        await asyncio.sleep(random.uniform(0, pause))


async def outcome(site: Opened, key: str, n: int) -> str:
    """Commit a row and an event before it, and return the outcome; unexpected errors end the program."""
    try:
        async with site.db.transaction() as tx:
            await site.bus.publish(Step(key=key, n=n))
            await tx.session.execute(insert(LEDGER).values(key=key, n=n))
    except CommitIndeterminate:
        return UNKNOWN
    except (DatabaseUnavailable, TransactionRolledBack, QueueUnavailable):
        return DROPPED
    return KEPT


async def hand_over(site: Opened, key: str, pause: float) -> None:
    """Publish one job after another outside of transactions, repeating each until it is accepted."""
    random, n = Random(key), 0
    while not site.gate.exists():
        n += 1
        job = Job(key=f"{DIRECT}{key}", n=n)
        await insist(site, job)
        site.journal.write("accepted", key=job.key, n=n)
        await asyncio.sleep(random.uniform(0, pause))
