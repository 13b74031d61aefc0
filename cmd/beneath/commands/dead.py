"""`beneath bus dead`: show, retry and discard dead letters, including those of listeners that the code lacks."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from beneath.commands.context import JsonOption, in_queue, print_json, print_table, printable

if TYPE_CHECKING:
    from infra.mq import DeadLetter, MessageQueue

app = typer.Typer(no_args_is_help=True, help="Show, retry and discard dead letters.", rich_markup_mode=None)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Ids from `beneath bus dead list`.")]
ListenerOption = Annotated[str | None, typer.Option("--listener", help="Select those of this listener.")]
EventOption = Annotated[str | None, typer.Option("--event", help="Select those of this event.")]
AllOption = Annotated[bool, typer.Option("--all", help="Select all, or all that match the other options.")]
PAGE = 500


@app.command("list")
def list_letters(
    context: typer.Context,
    listener: ListenerOption = None,
    event: EventOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of dead letters.")] = 100,
    after: Annotated[str | None, typer.Option(help="Start after this id.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, oldest first."""

    async def find(mq: "MessageQueue") -> "list[DeadLetter]":
        return await mq.dead_letters(subscription=listener, event=event, limit=limit, after=after)

    rows = [_row(each) for each in in_queue(context, find)]
    if as_json:
        print_json(rows)
        return
    columns = ["id", "listener", "event", "ordering_key", "failures", "crashes", "died_at", "error"]
    print_table(columns, rows, empty="no dead letters")


@app.command()
def show(
    context: typer.Context,
    dead_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter.

    Its event, its last error and its traceback.
    """
    from infra.logging import mask_output

    letter = in_queue(context, lambda mq: _one(mq, dead_id))
    details = {**_row(letter), "published_at": _time(letter.published_at), **_contents(letter.body)}
    if as_json:
        print_json({**details, "traceback": mask_output(letter.traceback)})
        return
    for name, value in details.items():
        typer.echo(f"{name.replace('_', ' ')}: {'-' if value is None else printable(str(value))}")
    if letter.traceback:
        typer.echo(f"\n{printable(mask_output(letter.traceback.rstrip()))}")


@app.command()
def retry(
    context: typer.Context,
    ids: Ids = None,
    listener: ListenerOption = None,
    event: EventOption = None,
    everything: AllOption = False,
) -> None:
    """Retry dead letters.

    Each is delivered to its own listener again, with its failures reset.
    """

    async def work(mq: "MessageQueue") -> int:
        return await mq.retry_dead(await _chosen(mq, ids, listener, event, everything))

    typer.echo(f"retried {in_queue(context, work)}")


@app.command()
def discard(
    context: typer.Context,
    ids: Ids = None,
    listener: ListenerOption = None,
    event: EventOption = None,
    everything: AllOption = False,
) -> None:
    """Delete dead letters permanently."""

    async def work(mq: "MessageQueue") -> int:
        return await mq.discard_dead(await _chosen(mq, ids, listener, event, everything))

    typer.echo(f"discarded {in_queue(context, work)}")


async def _one(mq: "MessageQueue", dead_id: str) -> "DeadLetter":
    from beneath.errors import UsageError
    from infra.mq import DeadLetterNotFound

    try:
        return await mq.dead_letter(dead_id)
    except DeadLetterNotFound:
        raise UsageError(
            f"there is no dead letter {dead_id!r}, so nothing was changed; list them with `beneath bus dead list`"
        ) from None


async def _chosen(
    mq: "MessageQueue", ids: list[str] | None, listener: str | None, event: str | None, everything: bool
) -> list[str]:
    """Return the selected ids; raise `UsageError` if one does not exist."""
    from beneath.errors import UsageError

    by_filter = everything or listener is not None or event is not None
    if bool(ids) == by_filter:
        raise UsageError("select dead letters by ids, or by --listener, --event or --all")
    for each in ids or ():
        await _one(mq, each)
    if ids:
        return ids
    chosen: list[str] = []
    while page := await mq.dead_letters(
        subscription=listener, event=event, limit=PAGE, after=chosen[-1] if chosen else None
    ):
        chosen += [each.id for each in page]
    return chosen


def _row(each: "DeadLetter") -> dict[str, object]:
    from infra.logging import mask_output

    return {
        "id": each.id,
        "listener": each.subscription,
        "event": each.event,
        "message_id": each.message_id,
        "ordering_key": each.ordering_key,
        "failures": each.failures,
        "crashes": each.crashes,
        "died_at": _time(each.died_at),
        "error": mask_output(each.error),
    }


def _contents(body: bytes) -> dict[str, object]:
    """Return the parts of a message that can be decoded without its event class."""
    import msgpack

    from bus import BusError, decode_frame

    try:
        frame = decode_frame(body)
        payload = msgpack.unpackb(frame.payload, timestamp=3, strict_map_key=False, object_pairs_hook=_with_text_keys)
        str(payload)
    except (BusError, ValueError, OverflowError, RecursionError, msgpack.UnpackException):
        return {"raw": body.hex()}
    return {"event_version": frame.event_version, "headers": dict(frame.headers), "payload": payload}


def _with_text_keys(pairs: Sequence[tuple[object, object]]) -> dict[str, object]:
    """Return an object of a payload with its keys as text; keys may be of any type, even unhashable."""
    return {key if isinstance(key, str) else str(key): value for key, value in pairs}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
