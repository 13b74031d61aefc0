"""A program that publishes steps in transactions and jobs alone, repeated by id until they are accepted."""

import asyncio
from collections.abc import Iterator
from itertools import count as count_from

from bus import PublishIndeterminate, PublishRejected
from tests.torture.events import Job, Step
from tests.torture.opening import Opened, Plan, opened

PAUSE = 0.02
"""Seconds between two attempts to publish."""


async def run(plan: Plan) -> None:
    """Publish steps and jobs of each key: `count`, or until the gate opens; at most `rate` of each in a second."""
    keys, count, rate = plan.arguments["keys"], plan.arguments.get("count"), plan.arguments["rate"]
    assert isinstance(keys, list)
    assert isinstance(count, int | None)
    assert isinstance(rate, int)
    async with opened(plan) as site:
        for n in until_open(site) if count is None else range(1, count + 1):
            async with site.db.transaction():
                for key in keys:
                    await site.bus.publish(Step(key=key, n=n))
            await asyncio.gather(*(insist(site, Job(key=key, n=n)) for key in keys))
            for key in keys:
                site.journal.write("accepted", key=key, n=n)
            await asyncio.sleep(len(keys) / rate)


def until_open(site: Opened) -> Iterator[int]:
    """Count from 1 on, until the gate opens."""
    for n in count_from(1):
        if site.gate.exists():
            return
        yield n


async def insist(site: Opened, job: Job) -> None:
    """Publish, repeated by id until it is accepted."""
    while True:
        try:
            await site.bus.publish(job, id=f"job-{job.key}-{job.n}")
        except (PublishRejected, PublishIndeterminate) as error:
            site.journal.write("note", key=job.key, n=job.n, text=type(error).__name__)
            await asyncio.sleep(PAUSE)
        else:
            return
