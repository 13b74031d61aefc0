"""Failed attempts that a test with the kit has not read."""

import pytest

from bus import RetryLater
from bus.testing import BusKit, UnexpectedFailure
from tests.bus.events import Ticked


def fails(event: Ticked) -> None:
    raise ValueError(f"no {event.n}")


async def start(kit: BusKit) -> None:
    """Start a kit with a listener that fails."""
    kit.bus.add_async_listener(fails, name="l")
    await kit.start()


async def publish(kit: BusKit, *numbers: int) -> None:
    """Publish events, and run their first attempts."""
    for n in numbers:
        await kit.bus.publish(Ticked(n))
    await kit.drain()


async def test_kit_raises_failures_that_were_not_read() -> None:
    with pytest.raises(ExceptionGroup, match=r"did not read `kit\.failures`") as caught:
        async with BusKit() as kit:
            await start(kit)
            await publish(kit, 1, 2)
    assert [str(each) for each in caught.value.exceptions] == [
        "l failed on clock.ticked (retry): ValueError: no 1",
        "l failed on clock.ticked (retry): ValueError: no 2",
    ]
    assert all(isinstance(each, UnexpectedFailure) for each in caught.value.exceptions)
    assert "in fails" in caught.value.exceptions[0].__notes__[0]


async def test_kit_accepts_failures_that_were_read() -> None:
    async with BusKit() as kit:
        await start(kit)
        await publish(kit, 1)
        assert [each.error for each in kit.failures] == ["ValueError: no 1"]
        assert len(kit.failures) == 1


async def test_kit_raises_a_failure_after_the_last_reading() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with BusKit() as kit:
            await start(kit)
            await publish(kit, 1)
            assert len(kit.failures) == 1
            await publish(kit, 2)
    assert [str(each) for each in caught.value.exceptions] == ["l failed on clock.ticked (retry): ValueError: no 2"]


async def test_kit_that_is_not_strict_accepts_failures() -> None:
    async with BusKit(strict=False) as kit:
        await start(kit)
        await publish(kit, 1)


async def test_error_of_the_test_is_raised_with_the_failures_as_notes() -> None:
    with pytest.raises(KeyError) as caught:
        async with BusKit() as kit:
            await start(kit)
            await publish(kit, 1)
            raise KeyError("own")
    assert caught.value.__notes__ == [
        "before this error, a handler failed: l failed on clock.ticked (retry): ValueError: no 1"
    ]


async def test_deferred_delivery_is_no_failure() -> None:
    async def later(event: Ticked) -> None:
        raise RetryLater(5)

    async with BusKit() as kit:
        kit.bus.add_async_listener(later, name="l")
        await kit.start()
        await kit.bus.publish(Ticked(1))
        await kit.drain()
