"""`beneath migrate`: apply, show and write migrations. Works with an incomplete container."""

from typing import TYPE_CHECKING, Annotated

import typer

from beneath.commands.context import JsonOption, container_of, print_json, print_table, run

if TYPE_CHECKING:
    from pathlib import Path

    from dependencies import Container
    from infra.db.migrate import Status

app = typer.Typer(no_args_is_help=True, help="Apply, show and write migrations of the database.", rich_markup_mode=None)


@app.command()
def up(context: typer.Context) -> None:
    """Apply all pending migrations in one transaction."""
    applied = run(_up(container_of(context)))
    for each in applied:
        typer.echo(f"applied {each}")
    if not applied:
        typer.echo("no migration is pending")


@app.command()
def new(
    context: typer.Context,
    message: Annotated[str, typer.Argument(help="A summary, such as `Add invoices`: docstring and file name.")],
) -> None:
    """Write the next migration of the application: the steps from the database's tables to the models'.

    The database must have all migrations; use one for development. Read the file: a renamed table or column appears in
    it as one dropped and one added.
    """
    path = run(_new(container_of(context), message))
    if path is None:
        typer.echo("the database has the tables of the models: there is nothing to migrate")
    else:
        typer.echo(f"wrote {path}; read it, then run `make fmt` and `beneath migrate up`")


@app.command()
def status(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show the state of the migrations."""
    found = run(_status(container_of(context)))
    rows = [
        {
            "history": each.history,
            "current": list(each.current),
            "pending": list(each.pending),
            "unknown": list(each.unknown),
        }
        for each in found
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(["history", "current", "pending", "unknown"], rows, empty="there are no migrations")


async def _up(container: "Container") -> list[str]:
    from dependencies.migrations import HISTORIES
    from infra.db.migrate import upgrade

    db = container.infra.db()
    await db.open()
    try:
        return await upgrade(db, HISTORIES)
    finally:
        await db.close()


async def _new(container: "Container", message: str) -> "Path | None":
    from dependencies.migrations import HISTORIES
    from infra.db.migrate import write_migration

    db = container.infra.db()
    await db.open()
    try:
        return await write_migration(db, HISTORIES, HISTORIES[-1].name, message)
    except ValueError as error:
        from beneath.errors import UsageError

        raise UsageError(f"{message!r} cannot be the summary of a migration: {error}") from error
    finally:
        await db.close()


async def _status(container: "Container") -> "list[Status]":
    from dependencies.migrations import HISTORIES
    from infra.db.migrate import status as status_of

    db = container.infra.db()
    await db.open()
    try:
        return await status_of(db, HISTORIES)
    finally:
        await db.close()
