"""The check of documented commands against the command line of the project."""

from collections.abc import Mapping
from typing import Any, cast

import typer

from beneath.cli import app as command_line


def check_command(where: object, arguments: list[str], *, whole: bool = True) -> None:
    """Check that `arguments` name existing commands, and options of these commands."""
    command: Any = typer.main.get_command(command_line)
    given = iter(arguments)
    for each in given:
        if each.startswith("-"):
            options = {name: option for option in command.params for name in option.opts}
            assert each in options, f"{where}: {each}"
            if not options[each].is_flag:
                next(given, None)
        elif commands := cast("Mapping[str, Any]", getattr(command, "commands", {})):
            assert each in commands or not whole, f"{where}: {each}"
            if each not in commands:
                # A sentence may list several commands: `beneath bus dead list|show`.
                assert all(part in commands for part in each.split("|")), f"{where}: {each}"
                return
            command = commands[each]
