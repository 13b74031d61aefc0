"""`beneath user`: create users."""

from typing import TYPE_CHECKING, Annotated

import typer

from beneath.commands.context import JsonOption, container_of, print_json, run, shared_queue

if TYPE_CHECKING:
    from dependencies import Container
    from services.user.service import SignUp

app = typer.Typer(no_args_is_help=True, help="Create users.", rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Create users."""


@app.command()
def create(
    context: typer.Context,
    email: Annotated[str, typer.Argument(metavar="EMAIL")],
    name: Annotated[
        str | None, typer.Option(help="The user's name; by default the part of EMAIL before the @.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a user and print the secret.

    The user gets an organization and a project. The secret is shown only once.
    """
    container = container_of(context)
    shared_queue(container)
    created = run(_create(container, email, name or email.partition("@")[0]))
    if as_json:
        user = {"id": str(created.user.id), "email": created.user.email, "name": created.user.name}
        print_json({"user": user, "secret": created.secret})
    else:
        typer.echo(f"created {created.user.email}, user {created.user.id}; the secret follows", err=True)
        typer.echo(created.secret)


async def _create(container: "Container", email: str, name: str) -> "SignUp":
    from beneath.application import Application
    from beneath.errors import UsageError
    from models.email import InvalidEmail
    from models.name import InvalidName
    from services.user.errors import EmailTaken

    async with Application(container).opened() as application:
        try:
            return await application.services.user.sign_up(email, name)
        except InvalidEmail as error:
            raise UsageError(f"{email!r}: {error}") from None
        except InvalidName as error:
            raise UsageError(f"{name!r}: {error}") from None
        except EmailTaken:
            raise UsageError(f"{email!r}: another user has this email") from None
