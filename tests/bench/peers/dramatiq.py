"""dramatiq on Redis."""

import threading
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from tests.bench.protocol import Job, Meter, job, publish_one_by_one

THREADS = 8
"""The default of its command."""


def run(work: Job) -> None:
    """Publish, or work until killed."""
    broker = RedisBroker(url=work.url)
    dramatiq.set_broker(broker)
    meter = Meter(work.count) if work.role == "work" else None

    @dramatiq.actor(actor_name="handle")
    def handle(event: dict[str, Any]) -> None:
        if meter is not None:
            meter.handled(event["sent"])

    if meter is None:
        publish_one_by_one(work, handle.send)
        return
    dramatiq.Worker(broker, worker_threads=THREADS).start()
    threading.Event().wait()


if __name__ == "__main__":
    run(job())
