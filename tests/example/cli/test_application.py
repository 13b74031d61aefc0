"""The complete application, run in this process, with overridden parts."""

import asyncio

from dependency_injector import providers

from beneath.application import Application
from dependencies import Container, Settings
from infra.clock import SystemClock
from infra.mail import Mail
from infra.mq.drivers.memory import MemoryQueue
from models.user import UserCreated
from tests.cli.conftest import sign_up


class FakeMailer:
    """A mailer that records the mails."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Mail] = asyncio.Queue()

    async def send(self, message: Mail) -> None:
        await self.sent.put(message)


class FakeNotification:
    """A replacement of a whole service, with its own listener."""

    def __init__(self, container: Container) -> None:
        self.seen: asyncio.Queue[UserCreated] = asyncio.Queue()
        container.infra.bus().add_async_listener(self.record, name="fake.record")

    async def record(self, event: UserCreated) -> None:
        await self.seen.put(event)


async def test_sign_up_over_http_uses_the_overridden_mailer(settings: Settings) -> None:
    container = Container(settings=settings)
    mailer = FakeMailer()
    container.infra.mailer.override(providers.Object(mailer))
    async with Application(container).running("all") as application:
        body = await sign_up(application.urls["control-server"], "ada@example.com")
        async with asyncio.timeout(10):
            message = await mailer.sent.get()
        assert message.to == "ada@example.com"
        assert body["secret"]


async def test_overridden_queue_carries_the_events(settings: Settings) -> None:
    container = Container(settings=settings)
    queue, mailer = MemoryQueue(clock=SystemClock()), FakeMailer()
    container.infra.mq.override(providers.Object(queue))
    container.infra.mailer.override(providers.Object(mailer))
    async with Application(container).running("control-worker") as application:
        assert {each.name for each in await queue.stats()} >= {"audit.record", "notification.send_welcome_email"}
        await application.services.user.sign_up("ada@example.com", "Ada")
        async with asyncio.timeout(10):
            await mailer.sent.get()


async def test_overridden_service_listens_in_place_of_the_original(settings: Settings) -> None:
    container = Container(settings=settings)
    container.services.notification.override(providers.ThreadSafeSingleton(FakeNotification, container))
    async with Application(container).running("control-worker") as application:
        await application.services.user.sign_up("ada@example.com", "Ada")
        fake = container.services.notification()
        assert isinstance(fake, FakeNotification)
        async with asyncio.timeout(10):
            event = await fake.seen.get()
        assert event.email == "ada@example.com"
