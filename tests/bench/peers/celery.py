"""Celery on Redis, with late acknowledgement."""

from typing import Any

from celery import Celery

from tests.bench.protocol import Job, Meter, job, publish_one_by_one


def run(work: Job) -> None:
    """Publish, or work until killed."""
    app = Celery("bench", broker=work.url)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=128,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    meter = Meter(work.count) if work.role == "work" else None

    @app.task(name="handle")
    def handle(event: dict[str, Any]) -> None:
        if meter is not None:
            meter.handled(event["sent"])

    if meter is None:
        publish_one_by_one(work, handle.delay)
        return
    options = ["--pool=solo", "--loglevel=error", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["worker", *options])


if __name__ == "__main__":
    run(job())
