"""A program that publishes steps 1 to `count` of each of its keys, in transactions, alone and in batches."""

import asyncio

from tests.torture.events import Step
from tests.torture.opening import Opened, Plan, opened


async def run(plan: Plan) -> None:
    """Publish, and record the accepted events."""
    keys, count = plan.arguments["keys"], plan.arguments["count"]
    assert isinstance(keys, list)
    assert isinstance(count, int)
    async with opened(plan) as site:
        for n in range(1, count + 1):
            await publish(site, [Step(key=key, n=n) for key in keys], n)
            for key in keys:
                site.journal.write("accepted", key=key, n=n)


async def publish(site: Opened, steps: list[Step], turn: int) -> None:
    """Publish one step of each key, in alternating ways."""
    if turn % 10 == 0:
        async with site.db.transaction():
            for step in steps:
                await site.bus.publish(step)
    elif turn % 10 == 1:
        await asyncio.gather(*(site.bus.publish(step) for step in steps))
    else:
        await site.bus.publish_many(steps)
