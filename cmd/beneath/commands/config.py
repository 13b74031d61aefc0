"""`beneath config`: write and show settings. Works without a database and with an incomplete container."""

from pathlib import Path
from typing import Annotated

import typer

from beneath.commands.context import JsonOption, options_of, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Write and show settings.", rich_markup_mode=None)


@app.command()
def generate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write; - for standard output.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a file with every setting.

    Each with its default and its meaning, all commented out.
    """
    from beneath.errors import UsageError
    from dependencies.template import render_template

    text = render_template()
    if file == "-":
        typer.echo(text, nl=False)
        return
    try:
        with Path(file).open("w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise UsageError(f"{file} exists already; replace it with --force") from None
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}; give the path of a writable file") from None


@app.command()
def show(context: typer.Context, as_json: JsonOption = False) -> None:
    """Print the settings in force, secrets masked."""
    from dependencies import load_settings
    from dependencies.sources import variable
    from dependencies.template import in_force

    options = options_of(context)
    settings = load_settings(file=options.file, overrides=options.overrides)
    if as_json:
        print_json(settings.model_dump(mode="json"))
        return
    rows = [{"setting": ".".join(key), "value": value, "variable": variable(key)} for key, value in in_force(settings)]
    print_table(["setting", "value", "variable"], rows, empty="there are no settings")
