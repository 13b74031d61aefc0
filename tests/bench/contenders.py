"""What is measured: this project's drivers, loops of bare clients, and peers, with their settings and guarantees."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a contender is."""

    OURS = "ours"
    BARE = "bare"
    PEER = "peer"


class Mode(StrEnum):
    """How events are published."""

    ONE = "one"
    MANY = "many"
    TOGETHER = "together"


ALL_MODES = frozenset(Mode)
WITHOUT_BATCH = frozenset({Mode.ONE, Mode.TOGETHER})
BLOCKING = frozenset({Mode.ONE})
"""The calls of a peer without asyncio and without a batch."""

BLOCKING_BATCH = frozenset({Mode.ONE, Mode.MANY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to queue and handle events, each measured in processes of its own."""

    name: str
    title: str
    kind: Kind
    server: str
    module: str
    count: int
    """Events that it handles in about one to three seconds."""

    few: int
    """Events that it publishes one by one in about a second."""

    modes: frozenset[Mode] = ALL_MODES
    environment: str | None = None
    """The list of requirements of its environment; None for this project's own environment."""

    settings: str
    acknowledges: str
    differs: str = ""
    """What a reader must know before comparing it with this project."""

    one_process: bool = False
    """Whether the publisher must be the process of the worker."""


def _ours(name: str, title: str, server: str, few: int, settings: str, *, one_process: bool = False) -> Contender:
    return Contender(
        name=name,
        title=title,
        kind=Kind.OURS,
        server=server,
        module="tests.bench.ours",
        count=50_000,
        few=few,
        settings=settings,
        acknowledges="in groups, after the handlers",
        one_process=one_process,
    )


def _bare(name: str, title: str, server: str, few: int, settings: str) -> Contender:
    return Contender(
        name=name,
        title=title,
        kind=Kind.BARE,
        server=server,
        module="tests.bench.bare",
        count=50_000,
        few=few,
        settings=settings,
        acknowledges="100 at once, after the handlers",
        differs="no concurrency, retries, leases, dead letters or recovery",
    )


def _peer(
    name: str,
    title: str,
    server: str,
    count: int,
    few: int,
    *,
    modes: frozenset[Mode],
    settings: str,
    acknowledges: str,
    differs: str = "",
    environment: str | None = None,
) -> Contender:
    return Contender(
        name=name,
        title=title,
        kind=Kind.PEER,
        server=server,
        module=f"tests.bench.peers.{name}",
        environment=environment or name,
        count=count,
        few=few,
        modes=modes,
        settings=settings,
        acknowledges=acknowledges,
        differs=differs,
    )


DEFAULTS = "the defaults of the bus"
ON_DISK = "synchronous=FULL: every COMMIT is synced to the disk"

MEMORY = _ours("memory", "Beneath, in memory", "memory", 5_000, DEFAULTS, one_process=True)

OURS = (
    _ours("ours-redis", "Beneath on Redis", "redis", 4_000, f"{DEFAULTS}; without an outbox"),
    _ours("ours-postgres", "Beneath on PostgreSQL", "postgres", 2_000, DEFAULTS),
    _ours("ours-sqlite", "Beneath on SQLite", "sqlite", 2_000, f"{DEFAULTS}; {ON_DISK}"),
)

OUTBOX = _ours(
    "ours-outbox", "Beneath on PostgreSQL, outbox to Redis", "postgres+redis", 2_000, f"{DEFAULTS}; transactions of 100"
)

BARE = (
    _bare("bare-redis", "bare redis-py", "redis", 4_000, "XADD by script of 100; XREADGROUP COUNT 100, XACK and XDEL"),
    _bare(
        "bare-postgres", "bare asyncpg", "postgres", 2_000, "one connection; UPDATE ... SKIP LOCKED LIMIT 100, DELETE"
    ),
    _bare("bare-sqlite", "bare sqlite3", "sqlite", 2_000, f"one connection, in the event loop's thread; {ON_DISK}"),
)

PEERS = (
    _peer(
        "repid",
        "repid",
        "redis",
        20_000,
        4_000,
        modes=WITHOUT_BATCH,
        settings="uvloop, batch_size=10 (100 is slower), claim_interval=30 (the default never recovers)",
        acknowledges="one XACK for each message, after the actor; the stream is not trimmed",
    ),
    _peer(
        "faststream",
        "FastStream",
        "redis",
        10_000,
        4_000,
        modes=ALL_MODES,
        settings="uvloop, a consumer group with max_records=100, publishes in pipelines of 100",
        acknowledges="one XACK for each message, after the handler; the stream is not trimmed",
        differs="a failed message, or one of a dead worker, stays pending until a second, claiming subscriber takes it",
    ),
    _peer(
        "faststream_batch",
        "FastStream, batch=True",
        "redis",
        50_000,
        4_000,
        modes=ALL_MODES,
        environment="faststream",
        settings="as above, and batch=True",
        acknowledges="one XACK for each batch, after the handler",
        differs="the handler is called for up to 100 messages at once, and one failure fails all of them",
    ),
    _peer(
        "taskiq",
        "taskiq",
        "redis",
        8_000,
        2_000,
        modes=WITHOUT_BATCH,
        settings="uvloop, RedisStreamBroker, 100 async tasks, no result backend",
        acknowledges="one XACK for each message, after the task; the stream is not trimmed",
        differs="the task is retried after a crash, when it was idle for 10 minutes; not after an error",
    ),
    _peer(
        "streaq",
        "streaq",
        "redis",
        2_000,
        2_000,
        modes=ALL_MODES,
        settings="uvloop, 16 concurrent tasks (100 are slower), ttl=0: no results",
        acknowledges="XACK and XDEL for each task, with its result",
    ),
    _peer(
        "dramatiq",
        "dramatiq",
        "redis",
        5_000,
        3_000,
        modes=BLOCKING,
        settings="1 process with 8 threads, no results",
        acknowledges="one by one, after the actor",
        differs="blocking calls in threads, without asyncio",
    ),
    _peer(
        "celery",
        "Celery",
        "redis",
        2_000,
        1_500,
        modes=BLOCKING,
        settings="solo pool (prefork and threads are slower here), acks_late, prefetch 128, results ignored",
        acknowledges="one by one, after the task",
        differs="blocking calls, one task at a time; a dead worker's tasks return after an hour (visibility_timeout)",
    ),
    _peer(
        "rq",
        "RQ",
        "redis",
        300,
        1_500,
        modes=BLOCKING_BATCH,
        settings="SimpleWorker, which does not fork for each job; result_ttl=0",
        acknowledges="one by one, after the job",
        differs="blocking calls, one job at a time; a dead worker's jobs fail and are retried only on demand",
    ),
    _peer(
        "huey",
        "huey",
        "redis",
        5_000,
        4_000,
        modes=BLOCKING,
        settings="1 thread (8 are no faster), blocking pop, no results",
        acknowledges="never: the pop removes the message",
        differs="at most once: a crash loses the running task; it has no setting for more",
    ),
    _peer(
        "pgqueuer",
        "pgqueuer",
        "postgres",
        15_000,
        1_500,
        modes=ALL_MODES,
        settings="uvloop, asyncpg, batch_size=100",
        acknowledges="in groups of 100, after the jobs",
    ),
    _peer(
        "procrastinate",
        "procrastinate",
        "postgres",
        1_000,
        700,
        modes=ALL_MODES,
        settings="uvloop, psycopg, 10 concurrent jobs, delete_jobs=always",
        acknowledges="one by one, after the job",
        differs="a dead worker's jobs are retried only by a periodic task that the application writes",
    ),
)

CONTENDERS = {each.name: each for each in (MEMORY, *OURS, OUTBOX, *BARE, *PEERS)}
