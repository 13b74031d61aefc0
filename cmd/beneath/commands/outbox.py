"""`beneath bus outbox`: show, retry and discard rejected rows. Works while the queue is unavailable."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from beneath.commands.context import JsonOption, container_of, print_json, print_table, run

if TYPE_CHECKING:
    from bus import RejectedRow, RejectedRows

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True, help="Show, retry and discard rejected rows of the outbox.", rich_markup_mode=None
)

LARGEST = 2**63 - 1
"""The largest number that a row can have in any database."""

Rows = Annotated[
    list[int] | None,
    typer.Argument(metavar="ROW...", min=1, max=LARGEST, help="Numbers from `beneath bus outbox list`."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Select all rejected rows.")]


@app.command("list")
def list_rows(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of rows.")] = 100,
    after: Annotated[int, typer.Option(min=0, max=LARGEST, help="Start after this row.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """List rejected rows, oldest first.

    These are committed events that the queue refused permanently, with the reason.
    """

    async def find(rows: "RejectedRows") -> "list[RejectedRow]":
        return await rows.list(limit=limit, after=after)

    found = [_row(each) for each in _in_outbox(context, find)]
    if as_json:
        print_json(found)
        return
    columns = ["row", "event", "message_id", "ordering_key", "bytes", "committed_at", "error"]
    print_table(columns, found, empty="no rejected rows")


@app.command()
def retry(context: typer.Context, rows: Rows = None, everything: AllOption = False) -> None:
    """Send rejected rows again.

    Repair the reason for the refusal first.
    """

    async def work(rejected: "RejectedRows") -> int:
        return await rejected.retry(await _chosen(rejected, rows, everything))

    typer.echo(f"retried {_in_outbox(context, work)}")


@app.command()
def discard(context: typer.Context, rows: Rows = None, everything: AllOption = False) -> None:
    """Delete rejected rows permanently.

    No listener will get their events.
    """

    async def work(rejected: "RejectedRows") -> int:
        return await rejected.discard(await _chosen(rejected, rows, everything))

    typer.echo(f"discarded {_in_outbox(context, work)}")


async def _chosen(rejected: "RejectedRows", rows: list[int] | None, everything: bool) -> list[int] | None:
    """Return the selected rows, None for all; raise `UsageError` if one does not exist."""
    from beneath.errors import UsageError

    if bool(rows) == everything:
        raise UsageError("select rejected rows by their numbers, or with --all")
    if rows and (missing := await rejected.missing(rows)):
        raise UsageError(
            f"there is no rejected row {missing[0]}, so nothing was changed; list them with `beneath bus outbox list`"
        )
    return rows or None


def _in_outbox(context: typer.Context, work: "Callable[[RejectedRows], Awaitable[T]]") -> T:
    container = container_of(context)

    async def opened() -> T:
        from beneath.application import open_database
        from bus import RejectedRows

        async with open_database(container) as db:
            return await work(RejectedRows(db))

    return run(opened())


def _row(each: "RejectedRow") -> dict[str, object]:
    from infra.logging import mask_output

    return {
        "row": each.id,
        "event": each.event or "(cancellation)",
        "message_id": each.message_id,
        "ordering_key": each.ordering_key,
        "bytes": each.size,
        "committed_at": datetime.fromtimestamp(each.created_at, UTC).isoformat(timespec="milliseconds"),
        "error": mask_output(each.error),
    }
