"""Migrations: the state of a database, and its upgrade, for the histories of the bus and of the application.

A process whose database `infra.db.histories` finds current does not import this module.

A history is a package with Alembic's layout (`env.py`, `script.py.mako`, `versions/`). Its `env.py` only calls
`run_environment`. Other packages may hold some of its migrations, each in its own `versions/`.

An upgrade is one transaction that excludes all other processes: it is applied as a whole or not at all, and each
migration once, however many processes start at the same time.
"""

import asyncio
import re
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from alembic import command, context
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationInfo
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, TypeDecorator
from sqlalchemy.exc import DBAPIError

from infra.db.database import Database
from infra.db.errors import DatabaseError, MigrationNewer, MigrationPending
from infra.db.histories import History

_OWN_TABLES = "beneath_"
_CONNECTION = "connection"
_VERSION_TABLE = "version_table"
_APPLIED = "applied"
_INSUFFICIENT_PRIVILEGE = "42501"
_MISSING_STATES = frozenset({"42P01", "42703", "3F000"})
_MISSING_TEXT = re.compile(r"no such (?:table|column)|table \S+ has no column")
_FORBIDDEN = ": migrate as the role that owns the database, or GRANT CREATE ON SCHEMA to this one"

# Alembic stores the running migration in its own globals (`alembic.op`, `alembic.context`).
_alembic = threading.Lock()


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a database in one history; `unknown` are applied revisions that this code does not have."""

    history: str
    current: tuple[str, ...]
    pending: tuple[str, ...]
    unknown: tuple[str, ...]


async def status(db: Database, histories: Sequence[History]) -> list[Status]:
    """Return the state of the database in each of `histories`, without changing anything.

    Raises:
        DatabaseError: the database cannot be read, or a history is malformed.
    """
    async with db.read() as session:
        connection = await session.connection()
        return [await connection.run_sync(_status, history) for history in histories]


async def pending(db: Database, histories: Sequence[History]) -> list[str]:
    """Return the migrations that the database lacks, such as `bus/0001_queue`, in the order in which they apply.

    Raises:
        MigrationNewer: the database has migrations that this code does not know.
    """
    states = await status(db, histories)
    _refuse_newer(states)
    return [name for state in states for name in state.pending]


async def require_current(db: Database, histories: Sequence[History]) -> None:
    """Check that the database has exactly the migrations of this code.

    Raises:
        MigrationPending: the database lacks migrations.
        MigrationNewer: the database has migrations that this code does not know.
    """
    missing = await pending(db, histories)
    if missing:
        raise MigrationPending(missing)


async def upgrade(db: Database, histories: Sequence[History]) -> list[str]:
    """Apply the pending migrations in one transaction, and return those that this call applied.

    Raises:
        MigrationNewer: the database has migrations that this code does not know; nothing was changed.
        DatabaseUnavailable: another process kept the database locked; nothing was changed.
        DatabaseError: a migration failed; the text names it, and nothing was changed.
    """
    async with _exclusive(), db.write_lock(), db.migrating() as connection:
        states = [await connection.run_sync(_status, history) for history in histories]
        _refuse_newer(states)
        applied: list[str] = []
        for history, state in zip(histories, states, strict=True):
            if state.pending:
                await connection.run_sync(_upgrade, history, state.pending)
                applied += state.pending
        return applied


async def write_migration(db: Database, histories: Sequence[History], name: str, message: str) -> Path | None:
    """Write the next migration of the history `name`: the steps from the database to the tables of the models.

    Return its file, or None if there is no difference. Tables whose names begin with `beneath_` belong to the bus and
    are ignored. A rename appears as one object dropped and one added.

    Raises:
        MigrationPending, MigrationNewer: the database is not at the last migration, so it cannot be compared.
        DatabaseError: the file cannot be written, or the history is not well-formed.
        ValueError: no file name can be made of `message`, or a docstring cannot contain it.
    """
    message = " ".join(message.split())
    if not re.search(r"[A-Za-z0-9]", message) or '"' in message or "\\" in message:
        raise ValueError("the message must contain a letter or digit, and neither quotation marks nor backslashes")
    await require_current(db, histories)
    history = next(each for each in histories if each.name == name)
    async with _exclusive(), db.migrating() as connection:
        return await connection.run_sync(_write_migration, history, message)


def run_environment(metadata: MetaData | None = None) -> None:
    """Run the migrations of `upgrade`; an `env.py` calls only this.

    `metadata` holds the tables of the models, for `write_migration`.
    """
    attributes = context.config.attributes

    def applied(
        ctx: MigrationContext, step: MigrationInfo, heads: Collection[object], run_args: Mapping[str, object]
    ) -> None:
        attributes[_APPLIED].append(step.up_revision_id)

    context.configure(
        connection=attributes[_CONNECTION],
        version_table=attributes[_VERSION_TABLE],
        target_metadata=metadata,
        render_as_batch=True,
        transactional_ddl=True,
        render_item=_render_item,
        include_name=lambda name, kind, _: kind != "table" or not str(name).startswith(_OWN_TABLES),
        on_version_apply=applied,
    )
    with context.begin_transaction():
        context.run_migrations()


@asynccontextmanager
async def _exclusive() -> AsyncIterator[None]:
    while not _alembic.acquire(blocking=False):  # noqa: ASYNC110  # the holder may be in the event loop of another thread
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        _alembic.release()


def _config(history: History) -> Config:
    config = Config()
    location, *parts = (str(files(package)).replace("%", "%%") for package in (history.package, *history.parts))
    config.set_main_option("script_location", location)
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(f"{folder}/versions" for folder in (location, *parts)))
    config.attributes[_VERSION_TABLE] = history.version_table
    return config


def _status(connection: Connection, history: History) -> Status:
    try:
        scripts = ScriptDirectory.from_config(_config(history))
        steps = list(scripts.walk_revisions())[::-1]
    except (CommandError, ModuleNotFoundError) as error:
        raise DatabaseError(f"the migrations of {history.package} cannot be read: {error}") from error
    try:
        migrations = MigrationContext.configure(connection, opts={"version_table": history.version_table})
        current = migrations.get_current_heads()
    except DBAPIError as error:
        raise DatabaseError(f"cannot read which migrations the database has: {_reason(error)}") from error
    known = {step.revision for step in steps}
    unknown = tuple(f"{history.name}/{revision}" for revision in current if revision not in known)
    done = set() if unknown else _done(scripts, current)
    return Status(
        history=history.name,
        current=tuple(f"{history.name}/{revision}" for revision in current),
        pending=() if unknown else tuple(_name(history, step) for step in steps if step.revision not in done),
        unknown=unknown,
    )


def _done(scripts: ScriptDirectory, current: Sequence[str]) -> set[str]:
    return {step.revision for step in scripts.iterate_revisions(tuple(current), "base")} if current else set()


def _upgrade(connection: Connection, history: History, steps: Sequence[str]) -> None:
    config = _config(history)
    config.attributes[_CONNECTION] = connection
    applied: list[str] = []
    config.attributes[_APPLIED] = applied
    try:
        command.upgrade(config, "heads")
    except Exception as error:
        failed = steps[min(len(applied), len(steps) - 1)]
        cause = _cause(error)
        reason = f"{type(cause).__name__}: {cause}".partition("\n")[0]
        remedy = _FORBIDDEN if getattr(cause, "sqlstate", None) == _INSUFFICIENT_PRIVILEGE else ""
        raise DatabaseError(f"the migration {failed} failed: {reason}; nothing was changed{remedy}") from error


def _write_migration(connection: Connection, history: History, message: str) -> Path | None:
    config = _config(history)
    config.cmd_opts = Namespace(quiet=True)
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes[_CONNECTION] = connection
    config.attributes[_APPLIED] = []
    numbers = [int(each.revision) for each in ScriptDirectory.from_config(config).walk_revisions()]
    try:
        script = command.revision(
            config,
            message,
            autogenerate=True,
            rev_id=f"{max(numbers, default=0) + 1:04}",
            process_revision_directives=_leave_out_empty,
        )
    except OSError as error:
        raise DatabaseError(f"the migration cannot be written: {error}") from error
    return Path(script.path) if isinstance(script, Script) else None


def _render_item(kind: str, item: object, _context: object) -> str | Literal[False]:
    """Render a type of the models as the SQLAlchemy type that it stores: migrations outlive the models' classes."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


def _leave_out_empty(_context: object, _revision: object, directives: list[MigrationScript]) -> None:
    operations = directives[0].upgrade_ops
    if operations is None or operations.is_empty():
        directives.clear()


def missing_object(error: BaseException) -> str | None:
    """Return the database's text about a missing table or column; None for any other error.

    If all migrations are applied, the object was dropped by hand, or a restored backup lacks it.
    """
    if not isinstance(error, DBAPIError):
        return None
    is_missing = getattr(_cause(error), "sqlstate", None) in _MISSING_STATES or _MISSING_TEXT.match(_reason(error))
    return _reason(error) if is_missing else None


def _reason(error: DBAPIError) -> str:
    return str(_cause(error)).partition("\n")[0]


def _cause(error: Exception) -> BaseException:
    """Return the driver's error that SQLAlchemy's error wraps."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return error
    return error.orig.__cause__ or error.orig


def _name(history: History, step: Script) -> str:
    return f"{history.name}/{Path(step.path).stem}"


def _refuse_newer(states: Sequence[Status]) -> None:
    unknown = [revision for state in states for revision in state.unknown]
    if unknown:
        raise MigrationNewer(unknown)
