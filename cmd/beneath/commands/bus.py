"""`beneath bus`: show listeners and deliveries, publish, and operate on listeners and ordering keys."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from beneath.commands import dead, outbox
from beneath.commands.context import (
    JsonOption,
    container_of,
    in_queue,
    print_json,
    print_table,
    printable,
    run,
    shared_queue,
)

if TYPE_CHECKING:
    from bus import Bus
    from dependencies import Container
    from infra.mq import MessageQueue, SubscriptionStats

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Show and operate the event bus.", rich_markup_mode=None)
app.add_typer(dead.app, name="dead")
app.add_typer(outbox.app, name="outbox")

ListenerArgument = Annotated[
    str, typer.Argument(metavar="LISTENER", help="The listener's name, as in `beneath bus stats`.")
]
STATES = ("ready", "retrying", "scheduled", "in_flight", "parked", "blocked", "dead")


@app.command()
def listeners(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the listeners in this code."""
    from beneath.describe import SHOWN_OPTIONS, listener_row

    bus = _registered(container_of(context))
    rows = [listener_row(each, bus.middleware) for each in bus.listeners]
    if as_json:
        print_json(rows)
        return
    columns = ["listener", "kind", "events", "attempts", *(each for each in SHOWN_OPTIONS if each != "aliases")]
    print_table(columns, rows, empty="no service registers a listener")


@app.command()
def explain(
    context: typer.Context, event: Annotated[str, typer.Argument(metavar="EVENT")], as_json: JsonOption = False
) -> None:
    """List the listeners of an event.

    For each listener of EVENT: where it runs, and when it is retried.
    """
    from beneath.describe import event_description, explanation, find_event

    bus = _registered(container_of(context))
    description = event_description(find_event(bus, event), bus.listeners, bus.middleware)
    if as_json:
        print_json(description)
    else:
        typer.echo("\n".join(explanation(description)))


@app.command()
def stats(context: typer.Context, as_json: JsonOption = False) -> None:
    """Count the deliveries of each listener.

    Listeners that this code does not have are included.
    """
    from infra.logging import mask_output

    found, warnings, now = in_queue(context, _inspect)
    rows = [_stats_row(each, now) for each in found]
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(rows)
        return
    columns = ["listener", *STATES, "oldest_seconds", "workers", "paused"]
    print_table(columns, rows, empty="the queue has no subscription yet; `beneath start all` declares the listeners")
    for each in found:
        for key, error in each.blocked_keys.items():
            typer.echo(f"{each.name}: key {key!r} is blocked by: {printable(' '.join(mask_output(error).split()))}")


@app.command()
def publish(
    context: typer.Context,
    event: Annotated[str, typer.Argument(metavar="EVENT")],
    fields: Annotated[str, typer.Argument(metavar="JSON", help="The event's fields, as a JSON object.")],
    message_id: Annotated[
        str | None, typer.Option("--id", help="Accept this id only once within the dedupe window.")
    ] = None,
    expires_in: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no attempt of an async listener after this time.")
    ] = None,
) -> None:
    """Publish an event.

    Sync listeners run in this command, in one transaction; async listeners run in a worker.
    """
    container = container_of(context)
    shared_queue(container)
    run(_publish(container, event, fields, message_id, expires_in))
    typer.echo(f"published {event}")


@app.command()
def pause(context: typer.Context, listener: ListenerArgument) -> None:
    """Pause a listener.

    No process claims its deliveries until it is resumed.
    """
    _change(context, listener, lambda mq: mq.pause(listener))
    typer.echo(f"paused {listener}")


@app.command()
def resume(context: typer.Context, listener: ListenerArgument) -> None:
    """Resume a paused listener."""
    _change(context, listener, lambda mq: mq.resume(listener))
    typer.echo(f"resumed {listener}")


@app.command()
def unblock(
    context: typer.Context,
    listener: ListenerArgument,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The ordering key.")],
    skip: Annotated[
        bool, typer.Option("--skip", help="Turn the event that blocks the key into a dead letter.")
    ] = False,
) -> None:
    """Unblock an ordering key of a listener.

    Its first event is attempted anew or, with --skip, becomes a dead letter.
    """
    _change(context, listener, lambda mq: mq.unblock(listener, key, skip=skip))
    typer.echo(f"unblocked {key} of {listener}")


@app.command()
def retire(
    context: typer.Context,
    listener: ListenerArgument,
    event: Annotated[str | None, typer.Option(help="Remove only this event of the listener.")] = None,
    backlog: Annotated[
        Literal["refuse", "discard", "dead"], typer.Option(help="What to do with deliveries that wait.")
    ] = "refuse",
) -> None:
    """Remove a listener's subscription.

    For a listener that the code no longer has. Refused while a live worker has the listener, or, by default, while
    deliveries wait for it.
    """
    count = _change(context, listener, lambda mq: mq.retire(listener, event=event, backlog=backlog))
    typer.echo(f"retired {listener}; {_deliveries(count)} waited for it")


def _registered(container: "Container") -> "Bus":
    """Return the bus with the listeners of all services, without a connection to the database or the queue."""
    from dependencies.completeness import check_completeness

    check_completeness(container)
    container.services.all()
    bus: Bus = container.infra.bus()
    return bus


def _change(context: typer.Context, listener: str, work: "Callable[[MessageQueue], Awaitable[T]]") -> T:
    async def named(mq: "MessageQueue") -> T:
        from beneath.errors import UsageError
        from dependencies.sources import nearest
        from infra.mq import SubscriptionNotFound

        try:
            return await work(mq)
        except SubscriptionNotFound as error:
            names = [each.name for each in await mq.stats()]
            if listener in names:
                raise
            raise UsageError(f"the queue has no listener {listener!r}{nearest(listener, names)}") from error

    return in_queue(context, named)


async def _publish(
    container: "Container", event: str, fields: str, message_id: str | None, expires_in: float | None
) -> None:
    from beneath.application import Application
    from beneath.describe import find_event, read_event
    from beneath.errors import UsageError
    from bus import BusError

    parsed = read_event(find_event(_registered(container), event), fields)
    async with Application(container).opened() as application:
        try:
            await application.bus.publish(parsed, id=message_id, expires_in=expires_in)
        except BusError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UsageError(f"{event} was not published, because a sync listener failed: {reason}") from error


def _deliveries(count: int) -> str:
    return "1 delivery" if count == 1 else f"{count} deliveries"


async def _inspect(mq: "MessageQueue") -> "tuple[list[SubscriptionStats], list[str], float]":
    return await mq.stats(), await mq.warnings(), mq.time()


def _stats_row(each: "SubscriptionStats", now: float) -> dict[str, object]:
    """Return the table row of one listener; `now` is the queue's time."""
    from infra.logging import mask_output

    return {
        "listener": each.name,
        "events": sorted(each.events),
        "ordered": each.ordered,
        **{state: getattr(each, state) for state in STATES},
        "oldest_seconds": None if each.oldest is None else round(max(0.0, now - each.oldest), 1),
        "workers": each.workers,
        "paused": each.paused,
        "blocked_keys": {key: mask_output(error) for key, error in each.blocked_keys.items()},
    }
