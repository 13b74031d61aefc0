"""A program that cancels delayed events at given times, and records whether that succeeded."""

import asyncio
import time

from tests.torture.opening import Opened, Plan, opened


async def run(plan: Plan) -> None:
    """Cancel the messages `ids` at the times `whens`, in seconds since the epoch."""
    ids, whens = plan.arguments["ids"], plan.arguments["whens"]
    assert isinstance(ids, list)
    assert isinstance(whens, list)
    async with opened(plan) as site:
        site.journal.write("ready")
        await asyncio.gather(*(cancel(site, id_, float(when)) for id_, when in zip(ids, whens, strict=True)))


async def cancel(site: Opened, message_id: str, when: float) -> None:
    """Cancel one message at its time."""
    await asyncio.sleep(when - time.time())
    cancelled = await site.bus.cancel(message_id)
    site.journal.write("note", id=message_id, text="cancelled" if cancelled else "too late")
