"""RQ on Redis, in a worker that does not fork for each job."""

from functools import cache
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker

from tests.bench.protocol import Job, Meter, Published, job, payload, publish_one_by_one

HANDLER = "tests.bench.peers.rq.handle"
"""The handler's path, by which RQ imports it."""

AT_ONCE = 100


@cache
def meter() -> Meter:
    """Return the meter of this process."""
    return Meter(job().count)


def handle(event: dict[str, Any]) -> None:
    """Count one event."""
    meter().handled(event["sent"])


def run(work: Job) -> None:
    """Publish, or work until killed."""
    connection = Redis.from_url(work.url)
    queue = Queue("bench", connection=connection)
    if work.role == "work":
        SimpleWorker([queue], connection=connection).work(logging_level="WARNING")
    elif work.role == "publish" and work.mode == "many":
        published = Published(work.count)
        for at in range(0, work.count, AT_ONCE):
            events = [payload(n=n) for n in range(at, min(at + AT_ONCE, work.count))]
            queue.enqueue_many([Queue.prepare_data(HANDLER, (event,), result_ttl=0) for event in events])
        published.report()
    else:
        publish_one_by_one(work, lambda event: queue.enqueue(HANDLER, event, result_ttl=0))


if __name__ == "__main__":
    run(job())
