"""huey on Redis."""

from typing import Any

from huey import RedisHuey

from tests.bench.protocol import Job, Meter, job, publish_one_by_one


def run(work: Job) -> None:
    """Publish, or work until killed."""
    huey = RedisHuey("bench", url=work.url, results=False)
    meter = Meter(work.count) if work.role == "work" else None

    @huey.task(name="handle")
    def handle(event: dict[str, Any]) -> None:
        if meter is not None:
            meter.handled(event["sent"])

    if meter is None:
        publish_one_by_one(work, handle)
    else:
        huey.create_consumer(workers=1, periodic=False).run()


if __name__ == "__main__":
    run(job())
