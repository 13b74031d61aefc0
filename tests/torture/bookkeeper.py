"""A publisher that goes on while its database comes and goes: it writes down how each of its transactions ended."""

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
"""How a transaction ended, as the program that wanted it was told."""

DIRECT = "direct-"
"""What the keys of jobs begin with that are published outside of transactions."""

PAUSE = 0.05
"""Seconds, at most, between the ends and beginnings of two transactions, unless the plan says otherwise."""


async def run(plan: Plan) -> None:
    """For each key book entries in one task, and publish jobs in another, until the gate opens."""
    keys, pause = plan.arguments["keys"], plan.arguments.get("pause", PAUSE)
    assert isinstance(keys, list)
    assert isinstance(pause, float)
    async with opened(plan) as site:
        await asyncio.gather(*(work(site, key, pause) for key in keys for work in (book, hand_over)))


async def book(site: Opened, key: str, pause: float) -> None:
    """Try one transaction after another, each with a number of its own."""
    random, n = Random(key), 0
    while not site.gate.exists():
        n += 1
        site.journal.write("note", key=key, n=n, text=await outcome(site, key, n))
        await asyncio.sleep(random.uniform(0, pause))


async def outcome(site: Opened, key: str, n: int) -> str:
    """Commit a row with an event before it, and return how that ended; any other error is the end of the program."""
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
    """Publish one job after another outside of transactions, each until it is certain that it was accepted."""
    random, n = Random(key), 0
    while not site.gate.exists():
        n += 1
        job = Job(key=f"{DIRECT}{key}", n=n)
        await insist(site, job)
        site.journal.write("accepted", key=job.key, n=n)
        await asyncio.sleep(random.uniform(0, pause))
