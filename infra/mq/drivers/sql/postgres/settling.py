"""Settlements on PostgreSQL: the end of claims."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from infra.db.postgresql_driver import Driver
from infra.mq.dividing import divided
from infra.mq.drivers.sql.postgres.owned_claims import PENDING_OUTCOMES
from infra.mq.types import Claim, Outcome, Settlement

STEP = 1000
"""The maximum number of settlements in a transaction, unless a single claim has more."""

STEP_BYTES = 4 * 1024 * 1024
"""The maximum size of their failure texts, in characters, unless a single claim has more."""

DEAD_LETTER, KEEP = 1, 2
_STATES = {Outcome.PARK: 2, Outcome.BLOCK: 3}

_DELETE = "DELETE FROM beneath_delivery WHERE id = ANY ($1::bigint[])"
_SETTLE = """
SELECT fenced_finished, fenced FROM beneath_settle_3(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21
)
"""
_ISOLATE = """
UPDATE beneath_delivery SET isolated = 1 WHERE id = $1 AND state + 0 = 1 AND owner = $2 AND fence = $3 RETURNING 1
"""
_ISOLATE_HEAD = """
UPDATE beneath_delivery SET isolated = 1 WHERE id = (
    SELECT d.id FROM (
        SELECT id FROM beneath_subscription WHERE name = $1
        UNION ALL SELECT subscription FROM beneath_alias WHERE name = $1
    ) AS s
    JOIN beneath_mailbox AS m ON m.subscription = s.id AND m.ordering_key = $2
        AND m.state = 1 AND m.owner = $3 AND m.fence = $4
    CROSS JOIN LATERAL (
        SELECT t.id FROM beneath_delivery AS t
        WHERE t.state = 4 AND t.subscription = m.subscription AND t.mailbox = m.ordering_key AND t.id <= m.last_id
        ORDER BY t.id LIMIT 1
    ) AS d
) RETURNING 1
"""


@dataclass(slots=True)
class _Columns:
    """Settlements as the columns that the SQL function takes."""

    done: list[int | str] = field(default_factory=list)
    """The handled unordered deliveries."""

    mailboxes: dict[int, int] = field(default_factory=dict)
    """The position of each claim's mailbox, counted from 1."""

    claims: list[Claim] = field(default_factory=list)
    closing: list[bool] = field(default_factory=list)
    finished: list[Settlement] = field(default_factory=list)
    """The settlements of handled deliveries of mailboxes."""

    finished_in: list[int] = field(default_factory=list)
    others: list[Settlement] = field(default_factory=list)
    """All further settlements."""

    places: list[int] = field(default_factory=list)
    fenced: list[Settlement] = field(default_factory=list)

    def add(self, it: Settlement) -> None:
        """Add a settlement."""
        claim, is_done = it.claim, it.outcome is Outcome.DONE
        if not claim.ordered:
            if is_done:
                self.done.append(it.delivery.id)
            else:
                self.others.append(it)
                self.places.append(0)
            return
        place = self.mailboxes.get(id(claim))
        if place is None:
            self.claims.append(claim)
            self.closing.append(False)
            place = self.mailboxes[id(claim)] = len(self.claims)
        elif self.closing[place - 1]:
            self.fenced.append(it)  # an earlier settlement has closed the claim
            return
        if is_done:
            self.finished.append(it)
            self.finished_in.append(place)
        else:
            self.others.append(it)
            self.places.append(place)
        self.closing[place - 1] = it.close or it.outcome in PENDING_OUTCOMES


def steps_of(settlements: Sequence[Settlement]) -> Iterator[list[Settlement]]:
    """Divide settlements into transactions; those of one claim stay together, in their order."""
    return divided(settlements, most=STEP, most_bytes=STEP_BYTES, size_of=_size)


def _size(settlement: Settlement) -> int:
    failure = settlement.failure
    return 0 if failure is None else len(failure.error) + len(failure.traceback)


async def settle(driver: Driver, worker: int, settlements: Sequence[Settlement], now: float) -> list[Settlement]:
    """End claims of `worker`; return the fenced settlements."""
    columns = _Columns()
    for it in settlements:
        columns.add(it)
    if not columns.claims and not columns.others:
        await driver.execute(_DELETE, columns.done)
        return []
    names: dict[str, int] = {}
    named = [names.setdefault(it.subscription, len(names) + 1) for it in columns.claims]
    others = columns.others
    fenced_finished, fenced = await driver.fetchrow(
        _SETTLE,
        worker,
        now,
        columns.done,
        list(names),
        named,
        [it.ordering_key or "" for it in columns.claims],
        [it.fence for it in columns.claims],
        columns.closing,
        columns.finished_in,
        [it.delivery.id for it in columns.finished],
        columns.places,
        [it.delivery.id for it in others],
        [it.claim.fence for it in others],
        [DEAD_LETTER if it.outcome is Outcome.DEAD else KEEP for it in others],
        [_STATES.get(it.outcome, 0) for it in others],
        [_failures_of(it) for it in others],
        [int(it.outcome is Outcome.DEFER) for it in others],
        [0.0 if it.outcome in _STATES else it.delay for it in others],
        [None if it.failure is None else _text(it.failure.error) for it in others],
        [None if it.failure is None else _text(it.failure.traceback) for it in others],
        [it.needs if it.outcome is Outcome.PARK else None for it in others],
    )
    return [
        *(columns.finished[nth - 1] for nth in fenced_finished or ()),
        *(others[nth - 1] for nth in fenced or ()),
        *columns.fenced,
    ]


async def isolate(driver: Driver, worker: int, claim: Claim) -> bool:
    """Mark the first unsettled delivery of `claim` as isolated; return False when fenced."""
    if claim.ordered:
        key = claim.ordering_key or ""
        return bool(await driver.fetch(_ISOLATE_HEAD, claim.subscription, key, worker, claim.fence))
    return bool(await driver.fetch(_ISOLATE, claim.deliveries[0].id, worker, claim.fence))


def _failures_of(it: Settlement) -> int:
    return int(it.outcome in {Outcome.RETRY, Outcome.BLOCK} or (it.outcome is Outcome.DEAD and it.charge))


def _text(text: str) -> str:
    # PostgreSQL stores neither NUL nor lone surrogates; a failure must be stored whatever its text is.
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
