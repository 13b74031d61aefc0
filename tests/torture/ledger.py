"""A program that commits rows together with their events until it is killed, and sometimes rolls back."""

import asyncio
import os
from random import Random

from sqlalchemy import text

from tests.torture.events import Job, Step
from tests.torture.opening import Opened, Plan, opened

ROLLED_BACK = 0.2


class Regretted(Exception):
    """Raised to roll a transaction back."""


async def run(plan: Plan) -> None:
    """Run four tasks, so that a kill hits transactions at every point."""
    async with opened(plan) as site:
        await asyncio.gather(*(book(site, Random(f"{os.getpid()} {task}"), task) for task in range(4)))


async def book(site: Opened, random: Random, task: int) -> None:
    """Write rows and publish their events."""
    key, n = f"{os.getpid()}-{task}", 0
    while True:
        n += 1
        try:
            await enter(site, key, n, regret=random.random() < ROLLED_BACK)
        except Regretted:
            site.journal.write("note", key=key, n=n, text="rolled back")


async def enter(site: Opened, key: str, n: int, *, regret: bool) -> None:
    """Write one row with an event before and one after it; roll back with `regret`."""
    async with site.db.transaction() as tx:
        await site.bus.publish(Step(key=key, n=n))
        await tx.session.execute(text("INSERT INTO ledger VALUES (:key, :n)"), {"key": key, "n": n})
        await site.bus.publish(Job(key=key, n=n))
        if regret:
            raise Regretted
