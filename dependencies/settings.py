"""The settings of the framework: each with its default, unit and bounds. `dependencies.sources` reads their values.

A key is the path to a leaf, like `mq.redis.url`; its environment variable is `BENEATH_MQ_REDIS_URL`. The docstrings
below are also what `beneath config generate` writes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bus import BusOptions
from dependencies.section import HeaderName, Network, Port, Seconds, Section, Url, clean_text
from dependencies.service_settings import ServiceSettings
from infra.mail.message import sender_address
from infra.mail.smtp import SmtpServer
from infra.masking import url_secrets
from infra.mq.defaults import DEDUPE_WINDOW, LEASE

Env = Literal["development", "test", "production"]

BUS = BusOptions()
"""The defaults of the bus, which are those of its settings too."""


class DbSettings(Section):
    """The application's database."""

    url: Url = Url("sqlite:///./data/beneath.db")
    """Its URL: `sqlite:///./relative/path.db`, `sqlite:////absolute/path.db`, or `postgresql://user:password@host/name`."""

    busy_timeout: Seconds = 10.0
    """Seconds that a writer waits for SQLite's write lock before it fails."""


class RedisSettings(Section):
    """Redis or Valkey, when `mq.driver` is `redis`."""

    url: Url = Url("redis://127.0.0.1:6379/0")
    """`redis://host:port/db`, `rediss://` for TLS, or `unix://path`, with username and password where needed."""


class MqSettings(Section):
    """The message queue."""

    driver: Literal["sql", "memory", "redis"] = "sql"
    """`sql`: in the database of `db.url`. `memory`: inside one process, lost when it ends; needs `start all`.
    `redis`: in the Redis or Valkey of `mq.redis.url`, with an outbox in the database of `db.url`."""

    connect_timeout: Seconds = 10.0
    """Seconds that a connection to the queue may take at the start."""

    dedupe_window: Seconds = DEDUPE_WINDOW
    """Seconds in which the queue accepts a message id only once, and drops duplicates."""

    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "beneath"
    """Prefix of all keys in Redis, so that several applications can share a server."""

    redis: RedisSettings = RedisSettings()


class BusSettings(Section):
    """The event bus."""

    max_payload: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = BUS.max_payload
    """Largest event, in bytes, headers included; the limit of the queue may be lower."""

    propagate: list[HeaderName] = Field(default=[])
    """Names of headers that pass from an event to the events that its listeners publish, such as `[tenant]`."""

    inbox_retention: Annotated[float, Field(ge=60, allow_inf_nan=False)] = BUS.inbox_retention
    """Seconds for which the inbox of `once=True` listeners keeps handled messages, to detect duplicates."""


class ControlSettings(Section):
    """The control server: HTTP."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen at; `0.0.0.0` for every interface."""

    port: Port = 4000
    """Port to listen at; 0 takes any free port. It serves health and metrics too."""

    grace: Seconds = 10.0
    """Seconds that a shutdown waits for open requests."""

    max_body: Annotated[int, Field(ge=1024, le=1024 * 1024 * 1024)] = 1024 * 1024
    """Largest request body, in bytes."""

    max_auth_failures: Annotated[int, Field(ge=1)] = 60
    """Wrong secrets that one address may send in 60 seconds."""

    max_sign_ups: Annotated[int, Field(ge=1)] = 30
    """Sign-ups and changes of email from one address in an hour, by each process; see `control.trusted_proxies`."""

    max_invites: Annotated[int, Field(ge=1)] = 100
    """Invites from one address in an hour, by each process, over all users."""

    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 500
    """Connections that are open at the same time, but at most half of the process's file descriptors (`ulimit -n`). At
    the limit a new connection ends the one that has kept the server waiting longest."""

    request_timeout: Seconds = 20.0
    """Seconds from a request's first byte to its last, and for a client to take 64 KiB of its answer."""

    keep_alive: Seconds = 5.0
    """Seconds that a connection may wait for another request; set it above the same setting of the proxy."""

    trusted_proxies: list[Network] = Field(default=[])
    """Addresses and networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` the server trusts, such as
    `[127.0.0.1, 10.0.0.0/8]`. It ignores these headers from other clients, and `Forwarded` always."""


class WorkerSettings(Section):
    """The control worker: async listeners."""

    processes: Annotated[int, Field(ge=1, le=256)] = 1
    """Worker processes. More than 1 are supervised and restarted, at ports `worker.port`, + 1, + 2, ..."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address at which a worker serves health and metrics."""

    port: Port = 4001
    """Port at which a worker serves health and metrics; 0 takes any free port. Not used if the control server runs in
    the same process: its port serves both."""

    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Connections to that port that are open at the same time; see `control.max_connections`."""

    concurrency: Annotated[int, Field(ge=1, le=10_000)] = BUS.concurrency
    """Deliveries that one listener handles at the same time in one process, unless the listener sets another number."""

    prefetch: Annotated[int, Field(ge=1, le=10_000)] = BUS.prefetch
    """Deliveries that one process claims ahead, beyond those that it handles."""

    timeout: Seconds | None = BUS.timeout
    """Seconds that a handler may take, unless its listener sets another timeout; null for no limit."""

    max_crashes: Annotated[int, Field(ge=1, le=100)] = BUS.max_crashes
    """Crashes of a worker while a delivery runs alone in it, after which the delivery becomes a dead letter."""

    grace: Seconds = BUS.grace
    """Seconds that a shutdown waits for running handlers; other claims are released without counting an attempt."""

    max_stall: Seconds = BUS.max_stall
    """Seconds that a handler may block the event loop before its worker is considered dead."""

    lease: Seconds = LEASE
    """Seconds after which a worker's lease expires unless it is renewed. SQLite uses a lock on a file instead."""

    renew: Seconds = BUS.renew_every
    """Seconds between two renewals of the lease; at most half of `worker.lease`."""

    recover_every: Seconds = BUS.recover_every
    """Seconds between two checks for dead workers and for parked deliveries that this code can handle."""

    @field_validator("renew")
    @classmethod
    def _renewed_in_time(cls, renew: float, info: ValidationInfo) -> float:
        lease: float | None = info.data.get("lease")  # None: invalid itself
        if lease is not None and renew * 2 > lease:
            raise ValueError(
                f"{renew:g} s is more than half of worker.lease, {lease:g} s; lower worker.renew or raise worker.lease"
            )
        return renew


class LogSettings(Section):
    """Logs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""

    format: Literal["auto", "json", "console"] = "auto"
    """`json`: one object a line. `console`: coloured, for people. `auto`: json in production, else console."""


class MailSettings(Section):
    """Outgoing mail."""

    smtp_url: Url | None = None
    """URL of the mail server: `smtp://user:password@host:port`, `smtp+starttls://...` to insist on encryption,
    or `smtps://...`. null: mails are written to `mail.folder`."""

    folder: Path = Path("data/mail")
    """Folder to which mails are written as `.eml` files if `mail.smtp_url` is null."""

    sender: str = "Beneath <no-reply@localhost>"
    """The From header of every mail."""

    timeout: Seconds = 10.0
    """Seconds that one step of sending a mail to the server may take."""

    @field_validator("smtp_url")
    @classmethod
    def _a_server(cls, url: Url | None) -> Url | None:
        if url is not None:
            SmtpServer.parse(url.get_secret_value())
        return url

    @field_validator("folder")
    @classmethod
    def _a_folder(cls, folder: Path) -> Path:
        try:
            return folder.expanduser()
        except RuntimeError:
            raise ValueError("value contains ~, but the home folder is unknown; write the absolute path") from None

    @field_validator("sender")
    @classmethod
    def _a_sender(cls, sender: str) -> str:
        sender_address(sender)
        return sender


class FrameworkSettings(BaseSettings):
    """The settings of the framework: everything but the sections of the services."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )

    env: Env = "development"
    """The environment: chooses the settings file, whether migrations are applied at the start, and the log's format."""

    @field_validator("env", mode="before")
    @classmethod
    def _clean(cls, value: object) -> object:
        return clean_text(value) if isinstance(value, str) else value

    db: DbSettings = DbSettings()
    mq: MqSettings = MqSettings()
    bus: BusSettings = BusSettings()
    control: ControlSettings = ControlSettings()
    worker: WorkerSettings = WorkerSettings()
    log: LogSettings = LogSettings()
    mail: MailSettings = MailSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @property
    def secrets(self) -> frozenset[str]:
        """The secret texts of these settings: passwords, secret options, and URLs that contain them."""
        return frozenset(text for url in _urls(self) for text in url_secrets(url.get_secret_value()))

    @property
    def log_format(self) -> Literal["json", "console"]:
        """The format in force: `log.format`, or with `auto` the one for `env`."""
        if self.log.format != "auto":
            return self.log.format
        return "json" if self.env == "production" else "console"


class Settings(ServiceSettings, FrameworkSettings):
    """All settings. `Settings(...)` takes defaults and arguments alone; `load_settings()` reads the sources as well."""


def _urls(section: BaseModel) -> Iterator[Url]:
    for value in vars(section).values():
        if isinstance(value, Url):
            yield value
        elif isinstance(value, BaseModel):
            yield from _urls(value)
