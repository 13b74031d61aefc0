"""The report of a soak: violations found in its journal and its tables."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from tests.torture.bookkeeper import DIRECT, DROPPED, KEPT, UNKNOWN
from tests.torture.checker import Message, check, duplicates, runs_of, successes
from tests.torture.fleet import Fleet
from tests.torture.journal import Line
from tests.torture.rows import EFFECT, LEDGER
from tests.torture.scheduler import CANCELLED, TIMED, TOO_LATE

TOLERANCE = 0.05
"""Maximum error, in seconds, of a process's estimate of a server's clock."""

LISTENERS = ("flaky", "sibling", "once", "done")


def violations(fleet: Fleet) -> list[str]:
    """Return a line for each violation."""
    lines = fleet.journal.lines()
    rows = [(str(key), int(n)) for key, n in fleet.rows.fetch(f"SELECT key, n FROM {LEDGER.name} ORDER BY key, n")]  # noqa: S608
    effects = [(str(key), int(n)) for key, n in fleet.rows.fetch(f"SELECT key, n FROM {EFFECT.name} ORDER BY id")]  # noqa: S608
    booked = [_accepted(each) for each in rows]
    handed_over = [*_handed_over(lines), *_timed(lines)]
    of_rows = [each for each in lines if not each.key.startswith((DIRECT, TIMED))]
    jobs = [*(each for each in lines if each.kind != "accepted"), *booked, *map(_accepted, handed_over)]
    return [
        *_untrue(lines, rows),
        *check([*of_rows, *booked], "flaky", ordered=True),
        *check([*of_rows, *booked], "sibling", ordered=False),
        *check(jobs, "done", ordered=False),
        *_once(rows, effects),
        *_early(lines),
        *_uncancelled(lines),
        *(f"dead letter: {it.subscription} {it.message_id}: {it.error}" for it in fleet.dead_letters()),
        *_stranded(fleet),
    ]


def summary(fleet: Fleet) -> str:
    """Return the numbers of handled and repeated events as text."""
    lines = fleet.journal.lines()
    counts = Counter(each.listener for each in lines if each.kind == "end")
    again = {name: duplicates(lines, name) for name in LISTENERS}
    return f"{counts.total()} deliveries handled {dict(counts)}, of these again {again}"


def _accepted(message: Message) -> Line:
    return Line(kind="accepted", process=0, at=0.0, key=message[0], n=message[1])


def _handed_over(lines: Sequence[Line]) -> Iterator[Message]:
    """Yield the jobs published outside of transactions: accepted ones, and per key one that was in-flight at a kill."""
    told: dict[str, int] = defaultdict(int)
    for each in lines:
        if each.kind == "accepted":
            told[each.key] = max(told[each.key], each.n)
            yield each.key, each.n
    done = successes(runs_of(lines), "done")
    yield from ((key, n) for key, n in done if key.startswith(DIRECT) and n == told[key] + 1)


def _timed(lines: Sequence[Line]) -> Iterator[Message]:
    """Yield the scheduled jobs that must be handled; those of unknown outcome only if they were."""
    accepted = {(it.key, it.n) for it in lines if it.kind == "note" and it.listener == "scheduled"}
    begun = {(it.key, it.n) for it in lines if it.kind == "note" and it.listener == "due"}
    answers = {(it.key, it.n): it.text for it in lines if it.kind == "note" and it.listener == "cancel"}
    done = successes(runs_of(lines), "done")
    # A killed publisher may just have cancelled: the outcome of these jobs is unknown.
    killed = {it.process for it in lines if it.kind == "killing"}
    unknown = {(it.key, it.n) for it in lines if it.process in killed and it.listener == "due"} - answers.keys()
    for each in begun:
        certain = each in accepted and answers.get(each, TOO_LATE) == TOO_LATE and each not in unknown
        if certain or (done[each] and answers.get(each) != CANCELLED):
            yield each


def _untrue(lines: Sequence[Line], rows: list[Message]) -> Iterator[str]:
    """Yield the rows that contradict what their publishers were told."""
    told: dict[str, set[Message]] = defaultdict(set)
    for each in lines:
        if each.kind == "note" and each.text in {KEPT, DROPPED, UNKNOWN} and not each.listener:
            told[each.text].add((each.key, each.n))
    last = Counter({key: 0 for key, _ in rows})
    for key, n in (*told[KEPT], *told[DROPPED], *told[UNKNOWN]):
        last[key] = max(last[key], n)
    kept = set(rows)
    yield from (f"lost row: {it}" for it in told[KEPT] - kept)
    yield from (f"phantom row: {it}" for it in told[DROPPED] & kept)
    unexplained = kept - told[KEPT] - told[UNKNOWN] - told[DROPPED]
    yield from (f"phantom row: {key}/{n}" for key, n in unexplained if n != last[key] + 1)


def _once(rows: list[Message], effects: list[Message]) -> Iterator[str]:
    """Yield the database effects of a `once` listener that are missing, repeated or out of order."""
    counts, expected = Counter(effects), Counter(rows)
    yield from (
        f"effect of {it}: {counts[it]} times instead of {expected[it]}"
        for it in {*counts, *expected}
        if counts[it] != expected[it]
    )
    ordered: dict[str, list[int]] = defaultdict(list)
    for key, n in effects:
        ordered[key].append(n)
    yield from (f"order of effects: {key} {ns}" for key, ns in ordered.items() if ns != sorted(ns))


def _early(lines: Sequence[Line]) -> Iterator[str]:
    due = {(it.key, it.n): float(it.text) for it in lines if it.kind == "note" and it.listener == "due"}
    for run in runs_of(lines):
        when = due.get((run.key, run.n))
        if when is not None and run.listener == "done" and run.at < when - TOLERANCE:
            yield f"{when - run.at:.3f} s early: {run}"


def _uncancelled(lines: Sequence[Line]) -> Iterator[str]:
    cancelled = {
        (it.key, it.n) for it in lines if it.kind == "note" and it.listener == "cancel" and it.text == CANCELLED
    }
    for run in runs_of(lines):
        if run.listener == "done" and (run.key, run.n) in cancelled:
            yield f"cancelled, and handled: {run}"


def _stranded(fleet: Fleet) -> Iterator[str]:
    for name, it in fleet.stats().items():
        left = it.ready + it.retrying + it.scheduled + it.in_flight + it.parked + it.blocked
        if left:
            yield f"stranded: {name} has {it}"
