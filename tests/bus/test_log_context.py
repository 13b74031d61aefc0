"""Log lines about a delivery carry the ids by which it can be traced to its request."""

import structlog
from structlog.testing import capture_logs

from bus import Discard, Retry, log_context
from bus.testing import BusKit
from tests.bus.events import UserCreated

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def test_log_lines_of_a_delivery_name_its_event_and_correlation_id() -> None:
    async def handler(event: UserCreated) -> None:
        log.info("handling")
        raise ValueError("not now") if event.email == "retried" else Discard("never")

    async with BusKit() as kit:
        kit.bus.add_async_listener(handler, name="listener", retry=Retry(max_attempts=2))
        await kit.start()
        with kit.bus.correlation("request-1"):
            for email in ("retried", "discarded"):
                await kit.bus.publish(UserCreated(email=email), id=email)
        with capture_logs(processors=[log_context]) as lines:
            await kit.advance(minutes=1)
            log.info("between")
        assert [each.outcome for each in kit.failures] == ["retry", "dead"]
    *about, between = lines
    assert {each["event"] for each in about} == {
        "handling",
        "listener failed",
        "delivery dead-lettered",
        "delivery discarded",
    }
    for line in about:
        assert (line["listener"], line["event_name"]) == ("listener", "UserCreated"), line
        assert line["event_id"] in {"retried", "discarded"}
        assert line["correlation_id"] == "request-1", line
    assert set(between) == {"event", "log_level"}
