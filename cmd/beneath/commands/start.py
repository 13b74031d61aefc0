"""`beneath start`: run startables until a signal shuts them down."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from beneath.commands.context import ConfigOption, SetOption, SettingsOptions, options_of, settings_of

if TYPE_CHECKING:
    from dependencies import Container


def start(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="control-server, control-worker, or all.")],
    reload: Annotated[bool, typer.Option("--reload", help="Restart when a source file changes.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    parent_fd: Annotated[int | None, typer.Option("--parent-fd", hidden=True)] = None,
) -> None:
    """Run parts of the application until a signal shuts them down."""
    from beneath.startables import select
    from dependencies import Container

    options = options_of(context).joined(config, overrides)
    select(names)
    settings = settings_of(options)
    if reload:
        asyncio.run(_leave_after(_reload(options, names)))
    container = Container(settings=settings)
    _refuse_split_memory(container, names)
    asyncio.run(_leave_after(_serve(container, names, options, parent_fd)))


async def _serve(container: "Container", names: list[str], options: SettingsOptions, parent_fd: int | None) -> None:
    from beneath.application import Application
    from beneath.startables import Launch

    await Application(container).run(names, Launch(options=options.arguments(), parent_fd=parent_fd))


async def _reload(options: SettingsOptions, names: list[str]) -> None:
    from beneath.runtime.lifecycle import Lifecycle, stop_signals
    from beneath.runtime.reload import Reloader

    reloader = Reloader((*options.arguments(), "start", *names), config=options.file)
    lifecycle = Lifecycle(grace=reloader.grace + 5)
    with stop_signals(lifecycle.stop):
        await lifecycle.run([reloader])


def _refuse_split_memory(container: "Container", names: list[str]) -> None:
    from beneath.errors import UsageError
    from beneath.startables import STARTABLES, select

    if container.infra.mq().features.multi_process:
        return
    settings = container.settings()
    reason = f"mq.driver={settings.mq.driver} keeps the queue inside one process"
    if len(select(names)) < len(STARTABLES):
        raise UsageError(f"{reason}: run `beneath start all`, or set mq.driver=sql")
    if settings.worker.processes > 1:
        raise UsageError(f"{reason}: set worker.processes=1, or mq.driver=sql")


async def _leave_after(work: Awaitable[None]) -> NoReturn:
    from beneath.commands.reporting import report
    from beneath.streams import flush_standard_streams

    code = 0
    try:
        await work
    except Exception as error:  # noqa: BLE001 - report() prints every error
        code = report(error)
    logging.shutdown()
    with contextlib.suppress(OSError):
        flush_standard_streams()
    # Everything is closed. A thread that does not end, such as a handler's, must not keep the process alive.
    os._exit(code & 0xFF)  # a handler may exit with any number; the parent gets its lowest 8 bits
