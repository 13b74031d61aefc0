"""A program that commits rows with their events, even while the broker is unavailable, and ends."""

from tests.torture.events import Job, Step
from tests.torture.opening import Opened, Plan, opened


async def run(plan: Plan) -> None:
    """Publish `count` steps and jobs of each key, a pair of them in each transaction."""
    keys, count = plan.arguments["keys"], plan.arguments["count"]
    assert isinstance(keys, list)
    assert isinstance(count, int)
    async with opened(plan) as site:
        for n in range(1, count + 1):
            for key in keys:
                await enter(site, key, n)


async def enter(site: Opened, key: str, n: int) -> None:
    """Publish in a transaction."""
    async with site.db.transaction():
        await site.bus.publish(Step(key=key, n=n))
        await site.bus.publish(Job(key=key, n=n))
    site.journal.write("accepted", key=key, n=n)
