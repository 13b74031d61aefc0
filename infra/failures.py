"""What an error says, in text, whatever the error's own methods do: user code may raise anything."""

import traceback

MAX_ERROR = 2_000
"""How much of an error's message is kept, in characters."""

MAX_TRACEBACK = 16_384
"""How much of a traceback is kept, in characters; the end says most."""


def describe(error: BaseException) -> str:
    """Return an error's class and message in one line; never raises."""
    name = "error"
    try:
        name = type(error).__name__
        # A subclass of str may do anything in its methods; a slice of it is a plain str.
        text = str.__getitem__(str(error), slice(0, MAX_ERROR))
        message = " ".join(text.split())
    except BaseException as failure:  # noqa: BLE001 - it is the error's own code, and worth no more than a remark
        message = f"(its text cannot be shown: str() raised {type(failure).__name__})"
    return f"{name}: {message}" if message else f"{name}"


def render_traceback(error: BaseException) -> str:
    """Return the end of an error's traceback with its causes; never raises."""
    try:
        return "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
    except BaseException as failure:  # noqa: BLE001 - as above
        return f"{describe(error)} (its traceback cannot be shown: {type(failure).__name__})\n"
