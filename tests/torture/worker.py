"""A process with a bus: a worker, or, like a server, one that is only there. SIGTERM stops it gracefully."""

import asyncio
import signal

from tests.torture.opening import Plan, opened


async def run(plan: Plan) -> None:
    """Run until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with opened(plan) as site:
        working = asyncio.create_task(site.bus.run()) if plan.work else None
        stopping = asyncio.create_task(stopped.wait())
        site.journal.write("ready")
        await asyncio.wait([stopping, *([working] if working else [])], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if working is not None:
            working.cancel()
            await asyncio.wait([working])
            if not working.cancelled():
                working.result()
