"""How large a message's body may be."""

from collections.abc import Iterable

from infra.mq.errors import MessageTooLarge
from infra.mq.types import Message


def refuse_larger(messages: Iterable[Message], most: int) -> None:
    """Refuse the messages as a whole if one of them is too large.

    Raises:
        MessageTooLarge: the message names the one whose body has more than `most` bytes.
    """
    for each in messages:
        if len(each.body) > most:
            raise MessageTooLarge(f"message {each.id} has {len(each.body)} bytes; at most {most} are allowed here")
