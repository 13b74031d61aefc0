"""How a message is kept, and what comes back of it."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from infra.mq.types import Claim, Delivery, Message

COUNTER_DIGITS = 7
"""Hexadecimal digits of a serial's counter; when they are used up, the serials get another middle part."""

_MICROSECONDS = 1_000_000


class Stored(msgspec.Struct, array_like=True):
    """A message as Redis has it. Scripts read the serial at its place, and the next four elements."""

    serial: str
    id: str
    event: str
    ordering_key: str | None
    published_at: float
    body: bytes


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Stored).decode


class Serials:
    """Names for messages, 31 characters, never used twice: when, which process, and a number.

    They begin with the time, so that what waits in line can be compared with what has a due time.
    """

    def __init__(self) -> None:
        self._middle = ""
        self._next = 1 << (4 * COUNTER_DIGITS)
        self._endings = [f"{it:02x}" for it in range(256)]

    def take(self, now: int, count: int) -> list[str]:
        """Return as many new ones; `now` in microseconds."""
        taken: list[str] = []
        while len(taken) < count:
            if self._next >> (4 * COUNTER_DIGITS):
                self._middle = secrets.token_urlsafe(6)
                self._next = 0
            high, low = divmod(self._next, 256)
            # Numbers that differ in their last two digits alone: adding these is all that each of them costs.
            endings = self._endings[low : low + count - len(taken)]
            start = f"{now:016d}{self._middle}{high:0{COUNTER_DIGITS - 2}x}"
            taken += [start + it for it in endings]
            self._next += len(endings)
        return taken


def microseconds(seconds: float) -> int:
    """Return a time, or a span of time, as scripts count it."""
    return round(seconds * _MICROSECONDS)


def seconds(text: bytes | str) -> float:
    """Return a time that a script told."""
    return int(text) / _MICROSECONDS


def keep(message: Message, serial: str) -> bytes:
    """Return what Redis keeps of a message: a `Stored`, without making one."""
    return encode((serial, message.id, message.event, message.ordering_key, message.published_at, message.body))


def deliveries_of(messages: Sequence[bytes], name: str, sid: str) -> list[Delivery]:
    """Return unordered deliveries."""
    found = []
    for raw in messages:
        it = decode(raw)
        found.append(
            Delivery(
                id=f"{it.serial}.{sid}",
                subscription=name,
                message_id=it.id,
                event=it.event,
                ordering_key=it.ordering_key,
                body=it.body,
                published_at=it.published_at,
            )
        )
    return found


def claims_of(answer: Sequence[Any], name: str, sid: str) -> list[Claim]:
    """Return the claims in a script's answer for an unordered subscription."""
    messages, pasts = answer
    deliveries = deliveries_of(messages, name, sid)
    claims = [Claim(subscription=name, deliveries=[it], fence=1) for it in deliveries]
    for past in pasts:
        claims[past[0] - 1].fence = past[5]
    count_pasts(deliveries, pasts)
    return claims


def mailbox_claims_of(answer: Iterable[Sequence[Any]], name: str, sid: str) -> list[Claim]:
    """Return the claims in a script's answer for an ordered subscription."""
    claims = []
    for key, fence, sequences, messages, pasts in answer:
        deliveries = deliveries_of(messages, name, sid)
        for delivery, sequence in zip(deliveries, sequences, strict=True):
            delivery.id = f"{delivery.id}.{sequence}"
        count_pasts(deliveries, pasts)
        claims.append(
            Claim(subscription=name, deliveries=deliveries, ordered=True, ordering_key=key.decode(), fence=fence)
        )
    return claims


def count_pasts(deliveries: Sequence[Delivery], pasts: Iterable[Sequence[int]]) -> None:
    """Enter what went wrong so far."""
    for position, failures, deferrals, takeovers, crashes, *_ in pasts:
        delivery = deliveries[position - 1]
        delivery.failures = failures
        delivery.deferrals = deferrals
        delivery.takeovers = takeovers
        delivery.crashes = crashes


def serial_of(delivery: Delivery) -> str:
    """Return the serial behind the id of an unordered delivery."""
    return str(delivery.id)[:31]


def sequence_of(delivery: Delivery) -> int:
    """Return the place behind the id of a delivery in a mailbox."""
    return int(str(delivery.id).rpartition(".")[2])
