"""A program that publishes delayed events and cancels some of them, until the gate opens."""

import asyncio
import time
from random import Random

from bus import CancelFailed, PublishIndeterminate, PublishRejected
from infra.db import CommitIndeterminate, DatabaseUnavailable, TransactionRolledBack
from infra.mq import QueueUnavailable
from tests.torture.events import Job
from tests.torture.opening import Opened, Plan, opened
from tests.torture.persistent import PAUSE

TIMED = "timed-"
"""Prefix of the keys of delayed jobs."""

CANCELLED, TOO_LATE, UNKNOWN = "cancelled", "too late", "unknown"
SHARE = 0.4
"""Share of the events that are cancelled."""

LONGEST_DELAY = 3.0

IN_TIME = 15.0
"""Seconds by which a cancellation precedes the due time with an outbox: longer than any fault lasts."""


async def run(plan: Plan) -> None:
    """For each key, schedule one job after another, `pause` seconds apart on average."""
    keys, pause = plan.arguments["keys"], plan.arguments["pause"]
    assert isinstance(keys, list)
    assert isinstance(pause, float)
    async with opened(plan) as site:
        await asyncio.gather(*(schedule(site, key, pause) for key in keys))


async def schedule(site: Opened, key: str, pause: float) -> None:
    """Schedule jobs of a key, half of them in a transaction, and cancel some around the time when they fire.

    With an outbox a cancellation may arrive late, so it is published `IN_TIME` seconds before the due time.
    """
    random, n = Random(key), 0
    async with asyncio.TaskGroup() as cancelling:
        while not site.gate.exists():
            n += 1
            job, delay = Job(key=f"{TIMED}{key}", n=n), random.uniform(0.2, LONGEST_DELAY)
            cancelled, after = random.random() < SHARE, random.uniform(0, delay + 0.1)
            if cancelled and not site.mq.features.transactional:
                delay += IN_TIME
            message_id = f"{job.key}-{n}"
            site.journal.write("note", listener="due", key=job.key, n=n, text=repr(time.time() + delay))
            await insist(site, job, delay, message_id, inside=random.random() < 0.5)
            site.journal.write("note", listener="scheduled", key=job.key, n=n)
            if cancelled:
                cancelling.create_task(cancel(site, job, message_id, after))
            await asyncio.sleep(random.uniform(0, 2 * pause))


async def insist(site: Opened, job: Job, delay: float, message_id: str, *, inside: bool) -> None:
    """Schedule a job, repeated by id until it is accepted."""
    while True:
        try:
            if inside:
                async with site.db.transaction():
                    await site.bus.publish_delayed(job, delay, id=message_id)
            else:
                await site.bus.publish_delayed(job, delay, id=message_id)
        except (PublishRejected, PublishIndeterminate, CommitIndeterminate):
            await asyncio.sleep(PAUSE)
        except (DatabaseUnavailable, TransactionRolledBack, QueueUnavailable):
            await asyncio.sleep(PAUSE)
        else:
            return


async def cancel(site: Opened, job: Job, message_id: str, after: float) -> None:
    """Cancel a job, and record the result."""
    await asyncio.sleep(after)
    try:
        answer = CANCELLED if await site.bus.cancel(message_id) else TOO_LATE
    except (CancelFailed, DatabaseUnavailable, TransactionRolledBack, CommitIndeterminate, QueueUnavailable):
        answer = UNKNOWN
    site.journal.write("note", listener="cancel", key=job.key, n=job.n, text=answer)
