"""The stored form of messages, and deliveries and claims read from the answers of scripts."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from infra.mq.types import Claim, ClaimedDelivery, Message

COUNTER_DIGITS = 7
"""Hexadecimal digits of a serial's counter; after its last number the serials get a new random part."""

_MICROSECONDS = 1_000_000


class StoredMessage(msgspec.Struct, array_like=True):
    """A message as Redis stores it. Scripts read the serial at its position, and the next four elements."""

    serial: str
    id: str
    event: str
    ordering_key: str | None
    published_at: float
    body: bytes


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(StoredMessage).decode


class Serials:
    """A generator of unique names for stored messages, of 31 characters: time, random part, counter.

    They begin with the time in microseconds, so that scripts can compare messages in line with due times.
    """

    def __init__(self) -> None:
        self._middle = ""
        self._next = 1 << (4 * COUNTER_DIGITS)
        self._endings = [f"{it:02x}" for it in range(256)]

    def take(self, now: int, count: int) -> list[str]:
        """Return `count` new serials; `now` is in microseconds."""
        taken: list[str] = []
        while len(taken) < count:
            if self._next >> (4 * COUNTER_DIGITS):
                self._middle = secrets.token_urlsafe(6)
                self._next = 0
            high, low = divmod(self._next, 256)
            # Up to 256 serials differ in two digits only, so that each costs one concatenation.
            endings = self._endings[low : low + count - len(taken)]
            start = f"{now:016d}{self._middle}{high:0{COUNTER_DIGITS - 2}x}"
            taken += [start + it for it in endings]
            self._next += len(endings)
        return taken


def microseconds(seconds: float) -> int:
    """Return a time or duration in microseconds, the unit of scripts."""
    return round(seconds * _MICROSECONDS)


def seconds(text: bytes | str) -> float:
    """Return a script's time in seconds."""
    return int(text) / _MICROSECONDS


def pack_message(message: Message, serial: str) -> bytes:
    """Return the packed `StoredMessage` of a message, without constructing the object."""
    return encode((serial, message.id, message.event, message.ordering_key, message.published_at, message.body))


def deliveries_of(messages: Sequence[bytes], name: str, sid: str) -> list[ClaimedDelivery]:
    """Return the deliveries of stored messages, with ids for an unordered subscription."""
    found = []
    for raw in messages:
        it = decode(raw)
        found.append(
            ClaimedDelivery(
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
    """Return the claims of a script's answer for an unordered subscription."""
    messages, pasts = answer
    deliveries = deliveries_of(messages, name, sid)
    claims = [Claim(subscription=name, deliveries=[it], fence=1) for it in deliveries]
    for past in pasts:
        claims[past[0] - 1].fence = past[5]
    set_counters(deliveries, pasts)
    return claims


def mailbox_claims_of(answer: Iterable[Sequence[Any]], name: str, sid: str) -> list[Claim]:
    """Return the claims of a script's answer for an ordered subscription."""
    claims = []
    for key, fence, sequences, messages, pasts in answer:
        deliveries = deliveries_of(messages, name, sid)
        for delivery, sequence in zip(deliveries, sequences, strict=True):
            delivery.id = f"{delivery.id}.{sequence}"
        set_counters(deliveries, pasts)
        claims.append(
            Claim(subscription=name, deliveries=deliveries, ordered=True, ordering_key=key.decode(), fence=fence)
        )
    return claims


def set_counters(deliveries: Sequence[ClaimedDelivery], pasts: Iterable[Sequence[int]]) -> None:
    """Set the counters of failures, deferrals, takeovers and crashes from their records."""
    for position, failures, deferrals, takeovers, crashes, *_ in pasts:
        delivery = deliveries[position - 1]
        delivery.failures = failures
        delivery.deferrals = deferrals
        delivery.takeovers = takeovers
        delivery.crashes = crashes


def serial_of(delivery: ClaimedDelivery) -> str:
    """Return the serial in the id of an unordered delivery."""
    return str(delivery.id)[:31]
