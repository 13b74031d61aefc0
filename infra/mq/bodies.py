"""The check of the size of message bodies."""

from collections.abc import Iterable

from infra.mq.errors import MessageTooLarge
from infra.mq.types import Message


def refuse_larger(messages: Iterable[Message], most: int) -> None:
    """Refuse all the messages if the body of one has more than `most` bytes.

    Raises:
        MessageTooLarge: names the first such message, and its size.
    """
    for each in messages:
        if len(each.body) > most:
            raise MessageTooLarge(f"message {each.id} has {len(each.body)} bytes; this queue takes at most {most}")
