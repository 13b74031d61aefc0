"""Providers of clock, database, queue, bus, mailer and telemetry. The only module that chooses a queue driver."""

from functools import partial

from dependency_injector.providers import Provider, ThreadSafeSingleton

from bus import Bus, BusOptions
from dependencies.metrics import bus_samples, outbox_samples, queue_samples, task_samples
from dependencies.settings import Settings
from dependencies.version import application_version
from infra.clock import Clock, SystemClock
from infra.db import Database
from infra.mail import FolderMailer, Mailer, SmtpMailer
from infra.mq import MessageQueue
from infra.telemetry import Telemetry


def build_database(settings: Settings, clock: Clock) -> Database:
    """Return the database of `db.url`, not yet open."""
    return Database(settings.db.url.get_secret_value(), busy_timeout=settings.db.busy_timeout, clock=clock)


def build_queue(settings: Settings, db: Database, clock: Clock) -> MessageQueue:
    """Return the queue of `mq.driver`, not yet open; only that driver is imported."""
    match settings.mq.driver:
        case "sql":
            from infra.mq.drivers.sql import SqlQueue

            return SqlQueue(
                db,
                clock=clock,
                dedupe_window=settings.mq.dedupe_window,
                patience=settings.db.busy_timeout,
                lease=settings.worker.lease,
            )
        case "memory":
            from infra.mq.drivers.memory import MemoryQueue

            return MemoryQueue(clock=clock, dedupe_window=settings.mq.dedupe_window, lease=settings.worker.lease)
        case "redis":
            from infra.mq.drivers.redis import RedisQueue

            return RedisQueue(
                settings.mq.redis.url.get_secret_value(),
                clock=clock,
                namespace=settings.mq.namespace,
                lease=settings.worker.lease,
                dedupe_window=settings.mq.dedupe_window,
                connect_timeout=settings.mq.connect_timeout,
            )


def build_mailer(settings: Settings, clock: Clock) -> Mailer:
    """Return the mailer: SMTP with `mail.smtp_url`, otherwise one that writes into `mail.folder`."""
    mail = settings.mail
    if mail.smtp_url is not None:
        return SmtpMailer(mail.smtp_url.get_secret_value(), mail.sender, timeout=mail.timeout, clock=clock)
    return FolderMailer(mail.folder, mail.sender, clock)


def build_bus(settings: Settings, mq: MessageQueue, db: Database, clock: Clock) -> Bus:
    """Return the bus, with no listeners yet."""
    worker = settings.worker
    options = BusOptions(
        prefetch=worker.prefetch,
        concurrency=worker.concurrency,
        grace=worker.grace,
        max_stall=worker.max_stall,
        renew_every=worker.renew,
        recover_every=worker.recover_every,
        timeout=worker.timeout,
        max_crashes=worker.max_crashes,
        max_payload=settings.bus.max_payload,
        propagate=frozenset(settings.bus.propagate),
        inbox_retention=settings.bus.inbox_retention,
        connect_timeout=settings.mq.connect_timeout,
    )
    return Bus(mq, db, clock=clock, options=options)


def build_telemetry(bus: Bus, mq: MessageQueue, clock: Clock) -> Telemetry:
    """Return the telemetry of bus, queue and outbox; queue depths are read at a scrape and cached for a few seconds."""
    telemetry = Telemetry(version=application_version(), clock=clock)
    telemetry.add(partial(bus_samples, bus))
    telemetry.add(partial(task_samples, bus))
    telemetry.add_async("queue", partial(queue_samples, mq))
    telemetry.add_async("outbox", partial(outbox_samples, bus))
    return telemetry


class Infra:
    """The objects of infrastructure, built once per container without I/O; `Application` opens and closes them."""

    def __init__(self, settings: Provider[Settings]) -> None:
        self.settings = settings
        self.clock = ThreadSafeSingleton(SystemClock)
        self.db = ThreadSafeSingleton(build_database, settings=settings, clock=self.clock)
        self.mq = ThreadSafeSingleton(build_queue, settings=settings, db=self.db, clock=self.clock)
        self.bus = ThreadSafeSingleton(build_bus, settings=settings, mq=self.mq, db=self.db, clock=self.clock)
        self.mailer = ThreadSafeSingleton(build_mailer, settings=settings, clock=self.clock)
        self.telemetry = ThreadSafeSingleton(build_telemetry, bus=self.bus, mq=self.mq, clock=self.clock)
