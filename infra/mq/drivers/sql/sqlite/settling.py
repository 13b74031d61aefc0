"""Settlements on SQLite: the end of claims."""

import sqlite3
from collections.abc import Iterator, Sequence
from json import dumps

from infra.mq.dividing import divided
from infra.mq.drivers.sql.sqlite.mailboxes import close_mailbox, drop, heads, release_mailboxes
from infra.mq.drivers.sql.sqlite.numbers import reserve
from infra.mq.types import Claim, Outcome, Settlement

SETTLED_AT_ONCE = 500
"""The maximum number of settlements in a transaction, unless a single claim has more."""

_PENDING_OUTCOMES = frozenset({Outcome.RETRY, Outcome.DEFER, Outcome.RELEASE, Outcome.PARK, Outcome.BLOCK})

_DELETE = "DELETE FROM beneath_delivery WHERE id IN (SELECT value FROM json_each(?))"
_RETURN = """
UPDATE beneath_delivery
SET state = ?, owner = NULL, isolated = 0, failures = failures + ?, deferrals = deferrals + ?,
    due_at = coalesce(?, due_at), needs = ?,
    last_error = coalesce(?, last_error), last_traceback = coalesce(?, last_traceback)
WHERE id = ?
"""
_OWNED = "SELECT EXISTS (SELECT 1 FROM beneath_delivery WHERE id = ? AND state = 1 AND owner = ? AND fence = ?)"
_TO_DEAD_LETTER = """
INSERT INTO beneath_dead_letter (
    id, subscription, message_id, event, ordering_key, error, traceback, failures, crashes, published_at, died_at, body
)
SELECT ?, s.name, d.message_id, d.event, d.ordering_key, coalesce(?, d.last_error, ?),
    coalesce(?, d.last_traceback, ''), d.failures + ?, d.crashes, d.published_at, ?, d.body
FROM beneath_delivery AS d CROSS JOIN beneath_subscription AS s ON s.id = d.subscription
WHERE d.id = ?
"""
_SUBSCRIPTION_OF = """
SELECT id FROM beneath_subscription WHERE name = :name
UNION ALL SELECT subscription FROM beneath_alias WHERE name = :name
"""
_OWNED_MAILBOX = """
SELECT last_id FROM beneath_mailbox
WHERE subscription = ? AND ordering_key = ? AND state = 1 AND owner = ? AND fence = ?
"""
_FIRST_OF_MAILBOX = """
SELECT d.id FROM beneath_delivery AS d INDEXED BY beneath_delivery_mailbox
WHERE d.state = 4 AND d.subscription = m.subscription AND d.mailbox = m.ordering_key ORDER BY d.id LIMIT 1
"""
_HANDLED = f"""
SELECT w.key, m.subscription, m.ordering_key, m.last_id, ({_FIRST_OF_MAILBOX}), ({_FIRST_OF_MAILBOX} OFFSET 1)
FROM json_each(:claims) AS w CROSS JOIN beneath_mailbox AS m
    ON m.subscription = json_extract(w.value, '$[0]') AND m.ordering_key = json_extract(w.value, '$[1]')
WHERE m.state = 1 AND m.owner = :worker AND m.fence = json_extract(w.value, '$[2]')
"""  # noqa: S608  # constants only
_MARK = "UPDATE beneath_delivery SET isolated = 1 WHERE id = ?"

Id = int | str
Held = tuple[int, str, int]
"""A claimed mailbox: subscription, key, and the number of the last delivery in the claim."""


def in_steps(settlements: Sequence[Settlement]) -> Iterator[Sequence[Settlement]]:
    """Divide settlements into transactions; those of one claim stay together, in their order."""
    if len(settlements) <= SETTLED_AT_ONCE:
        yield settlements
        return
    # Only the number of settlements is bounded here, not their bytes.
    yield from divided(settlements, most=SETTLED_AT_ONCE, most_bytes=0, size_of=lambda _: 0)


def settle(db: sqlite3.Connection, worker: int, settlements: Sequence[Settlement], *, now: float) -> list[Settlement]:
    """End claims of `worker`; return the fenced settlements."""
    fenced: list[Settlement] = []
    done: list[Id] = []
    mailboxes: dict[int, list[Settlement]] = {}
    for it in settlements:
        if it.claim.ordered:
            mailboxes.setdefault(id(it.claim), []).append(it)
        elif it.outcome is Outcome.DONE:
            done.append(it.delivery.id)
        elif _is_owned(db, worker, it.delivery.id, it.claim.fence):
            _end(db, it, now, stays_in=2 if it.outcome is Outcome.PARK else 0)
        else:
            fenced.append(it)
    if mailboxes:
        gone, refused = _settle_mailboxes(db, worker, list(mailboxes.values()), now)
        done += gone
        fenced += refused
    delete(db, done)
    return fenced


def isolate(db: sqlite3.Connection, worker: int, claim: Claim) -> bool:
    """Mark the first unsettled delivery of `claim` as isolated; return False when fenced."""
    if claim.ordered:
        mailbox = _held_mailbox(db, worker, claim, _subscription_of(db, claim.subscription))
        marked: Sequence[Id] = heads(db, *mailbox[:2]) if mailbox else []
    else:
        marked = [it.id for it in claim.deliveries if _is_owned(db, worker, it.id, claim.fence)]
    return bool(marked) and db.execute(_MARK, marked).rowcount > 0


def delete(db: sqlite3.Connection, ids: Sequence[Id]) -> None:
    """Delete deliveries."""
    if ids:
        db.execute(_DELETE, (dumps(ids),))


def to_dead_letter(
    db: sqlite3.Connection,
    delivery_id: Id,
    now: float,
    *,
    error: str | None = None,
    traceback: str | None = None,
    charge: bool = False,
    otherwise: str = "",
) -> None:
    """Turn a delivery into a dead letter with `error`, or else its last error, or else `otherwise`."""
    db.execute(_TO_DEAD_LETTER, (reserve(db, 1), error, otherwise, traceback, int(charge), now, delivery_id))
    delete(db, [delivery_id])


def _settle_mailboxes(
    db: sqlite3.Connection, worker: int, claims: Sequence[Sequence[Settlement]], now: float
) -> tuple[list[Id], list[Settlement]]:
    """Settle claims of mailboxes; return the deliveries to delete, and the fenced settlements."""
    turn = reserve(db, len(claims))
    kept = {name: _subscription_of(db, name) for name in {ends[0].claim.subscription for ends in claims}}
    gone: list[Id] = []
    fenced: list[Settlement] = []
    handled: list[tuple[int, int | None, Settlement]] = []
    for mailbox_turn, ends in enumerate(claims, turn):
        subscription = kept[ends[0].claim.subscription]
        if len(ends) == 1 and ends[0].outcome is Outcome.DONE and ends[0].close:
            handled.append((mailbox_turn, subscription, ends[0]))
            continue
        held = _held_mailbox(db, worker, ends[0].claim, subscription)
        ended, refused = _settle_mailbox(db, held, ends, now, mailbox_turn)
        gone += ended
        fenced += refused
    if handled:
        # With many keys, most claims have one delivery.
        ended, refused = _close_handled(db, worker, handled, now)
        gone += ended
        fenced += refused
    return gone, fenced


def _close_handled(
    db: sqlite3.Connection, worker: int, handled: Sequence[tuple[int, int | None, Settlement]], now: float
) -> tuple[list[Id], list[Settlement]]:
    """Settle claims of which one delivery was handled, in a fixed number of statements if the mailboxes are empty then.

    `handled` has the turn, the subscription and the settlement of each claim. The result is that of `_settle_mailbox`.
    """
    claims = dumps([(subscription, it.claim.ordering_key or "", it.claim.fence) for _, subscription, it in handled])
    gone: list[Id] = []
    empty: list[tuple[int, str]] = []
    released: list[tuple[int, str, int]] = []
    for nth, subscription, key, last, first, second in db.execute(_HANDLED, {"claims": claims, "worker": worker}):
        turn, _, it = handled[nth]
        is_next = first is not None and first == it.delivery.id and first <= last
        if is_next:
            gone.append(it.delivery.id)
        if (second if is_next else first) is None:
            empty.append((subscription, key))
        else:
            released.append((subscription, key, turn))
    for subscription, key, turn in released:
        close_mailbox(db, subscription, key, now, turn, empty=False)
    drop(db, empty)
    ended = set(gone)
    return gone, [it for _, _, it in handled if it.delivery.id not in ended]


def _settle_mailbox(
    db: sqlite3.Connection, mailbox: Held | None, ends: Sequence[Settlement], now: float, turn: int
) -> tuple[list[Id], Sequence[Settlement]]:
    """Settle one claim of a mailbox; return the deliveries to delete, and the fenced settlements."""
    if mailbox is None:
        return [], ends
    subscription, key, last = mailbox
    waiting = heads(db, subscription, key, len(ends) + 1)
    gone: list[Id] = []
    fenced: list[Settlement] = []
    for place, it in enumerate(ends):
        is_next = bool(waiting) and waiting[0] == it.delivery.id and waiting[0] <= last
        if not is_next:
            fenced.append(it)
        elif it.outcome in _PENDING_OUTCOMES:
            _end(db, it, now, stays_in=4)
            _leave_waiting(db, it, subscription, now, turn)
            return gone, [*fenced, *ends[place + 1 :]]
        else:
            gone += _finish(db, it, now)
            del waiting[0]
        if it.close:
            close_mailbox(db, subscription, key, now, turn, empty=not waiting)
            return gone, [*fenced, *ends[place + 1 :]]
    return gone, fenced


def _finish(db: sqlite3.Connection, it: Settlement, now: float) -> list[Id]:
    """End a delivery of a mailbox; return its number if the caller must delete it."""
    if it.outcome is Outcome.DONE:
        return [it.delivery.id]
    _end(db, it, now, stays_in=4)
    return []


def _leave_waiting(db: sqlite3.Connection, it: Settlement, subscription: int, now: float, turn: int) -> None:
    state = {Outcome.PARK: 2, Outcome.BLOCK: 3}.get(it.outcome, 0)
    release_mailboxes(
        db,
        [(subscription, it.claim.ordering_key or "")],
        state=state,
        due_at=now + max(it.delay, 0.0),
        turn=turn,
        parked_for=_needs(it),
    )


def _end(db: sqlite3.Connection, it: Settlement, now: float, *, stays_in: int) -> None:
    error, traceback = (it.failure.error, it.failure.traceback) if it.failure else (None, None)
    if it.outcome is Outcome.DEAD:
        to_dead_letter(db, it.delivery.id, now, error=error, traceback=traceback, charge=it.charge)
        return
    failed = int(it.outcome in {Outcome.RETRY, Outcome.BLOCK})
    deferred = int(it.outcome is Outcome.DEFER)
    due_at = now + it.delay if it.delay > 0 and it.outcome is not Outcome.PARK else None
    values = (stays_in, failed, deferred, due_at, _needs(it), error, traceback, it.delivery.id)
    db.execute(_RETURN, values)


def _needs(it: Settlement) -> str | None:
    return (it.needs or it.delivery.event) if it.outcome is Outcome.PARK else None


def _is_owned(db: sqlite3.Connection, worker: int, delivery_id: Id, fence: int) -> bool:
    return bool(db.execute(_OWNED, (delivery_id, worker, fence)).fetchone()[0])


def _held_mailbox(db: sqlite3.Connection, worker: int, claim: Claim, subscription: int | None) -> Held | None:
    """Return the mailbox of `claim`; None when fenced."""
    if subscription is None:
        return None
    key = claim.ordering_key or ""
    held = db.execute(_OWNED_MAILBOX, (subscription, key, worker, claim.fence)).fetchone()
    return None if held is None else (subscription, key, held[0])


def _subscription_of(db: sqlite3.Connection, name: str) -> int | None:
    kept = db.execute(_SUBSCRIPTION_OF, {"name": name}).fetchone()
    return None if kept is None else int(kept[0])
