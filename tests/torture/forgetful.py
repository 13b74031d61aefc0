"""A worker that dies just before it settles its first deliveries."""

import os
from typing import NoReturn

from infra.mq import ClaimLimits, Consumer, MessageQueue, WorkerInfo
from tests.torture.opening import Plan, opened


async def run(plan: Plan) -> None:
    """Run the worker until the first settlement."""
    async with opened(plan) as site:
        take_memory(site.mq)
        await site.bus.run()


def take_memory(mq: MessageQueue) -> None:
    """Let the queue's consumers kill the process when they settle."""
    make = mq.consumer

    async def consumer(info: WorkerInfo, limits: ClaimLimits) -> Consumer:
        made = await make(info, limits)

        async def settle(_settlements: object) -> NoReturn:
            os._exit(9)

        made.settle = settle  # type: ignore[method-assign,assignment]  # the fault that this program is for
        return made

    mq.consumer = consumer  # type: ignore[method-assign]  # as above
