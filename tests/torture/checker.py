"""Reads a journal and says which promises were broken: one line for each, so an empty list is a proof.

A handler's run goes from its "start" to its "end", "failed" or "cancelled" line. One whose process was killed goes to
the "killing" line, written just before the signal was sent, or to the end of what that process wrote. One whose process
was paused for longer than its lease goes to the "pausing" line, written when it stood still: it may come to an end when
the process goes on, but its result no longer counts, and it is not beside the run that took its place. One whose
process was cut off from the queue, until the "cut off" line, may have come to an end that did not count; an ordered one
must not be beside the run that took its place.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.torture.journal import Kind, Line

Message = tuple[str, int]
"""An event, by its key and its place in it."""

_ENDS: frozenset[Kind] = frozenset({"end", "failed", "cancelled"})


@dataclass(slots=True, kw_only=True)
class Run:
    """A handler at work on one event. Places are line numbers."""

    listener: str
    key: str
    n: int
    attempt: int
    pid: int
    started: int
    at: float
    ended: float = math.inf
    outcome: Kind | None = None

    def __str__(self) -> str:
        return f"{self.listener} {self.key}/{self.n} attempt {self.attempt} in {self.pid} (line {self.started + 1})"


def runs_of(lines: Sequence[Line]) -> list[Run]:
    """Return every run, in the order in which they started."""
    runs: list[Run] = []
    running: dict[tuple[str, str, int, int], Run] = {}
    for place, line in enumerate(lines):
        run_id = (line.listener, line.key, line.n, line.pid)
        if line.kind == "start":
            run = Run(
                listener=line.listener,
                key=line.key,
                n=line.n,
                attempt=line.attempt,
                pid=line.pid,
                started=place,
                at=line.at,
            )
            runs.append(run)
            running[run_id] = run
        elif line.kind in _ENDS:
            run = running.pop(run_id)
            run.ended, run.outcome = min(run.ended, place), line.kind
        elif line.kind in {"killing", "pausing"}:
            for run in running.values():
                if run.pid == line.pid:
                    run.ended = place
    # What began between that line and the signal went to the end of what the process wrote.
    written = {line.pid: place for place, line in enumerate(lines)}
    killed = {line.pid for line in lines if line.kind == "killing"}
    for run in running.values():
        if run.pid in killed and run.ended == math.inf:
            run.ended = written[run.pid]
    return runs


def accepted(lines: Iterable[Line]) -> dict[str, list[int]]:
    """Return what was published, in order, by key."""
    published: dict[str, list[int]] = defaultdict(list)
    for line in lines:
        if line.kind == "accepted":
            published[line.key].append(line.n)
    return published


def interrupted(lines: Iterable[Line]) -> dict[int, float]:
    """Return until where the results of processes that were killed, paused or cut off may not have counted."""
    places: dict[int, float] = {}
    for place, line in enumerate(lines):
        if line.kind == "killing":
            places[line.pid] = math.inf
        elif line.kind in {"pausing", "cut off"}:
            places[line.pid] = max(place, places.get(line.pid, 0))
    return places


def successes(runs: Iterable[Run], listener: str) -> Counter[Message]:
    """Return how often each event was handled successfully."""
    return Counter((run.key, run.n) for run in runs if run.listener == listener and run.outcome == "end")


def lost(lines: Sequence[Line], listener: str) -> list[str]:
    """Published, and never handled."""
    done = successes(runs_of(lines), listener)
    return [f"lost: {key}/{n}" for key, ns in accepted(lines).items() for n in ns if not done[(key, n)]]


def phantoms(lines: Sequence[Line], listener: str) -> list[str]:
    """Handled, and never published."""
    published = {(key, n) for key, ns in accepted(lines).items() for n in ns}
    return [
        f"phantom: {run}" for run in runs_of(lines) if run.listener == listener and (run.key, run.n) not in published
    ]


def out_of_order(lines: Sequence[Line], listener: str) -> list[str]:
    """First successes that are not in publish order, and runs that did not wait for the one before to succeed."""
    published = accepted(lines)
    found: list[str] = []
    firsts: dict[str, list[int]] = defaultdict(list)
    done: dict[Message, int] = {}
    for run in sorted((it for it in runs_of(lines) if it.outcome == "end"), key=lambda it: it.ended):
        if run.listener == listener and (run.key, run.n) not in done:
            done[(run.key, run.n)] = int(run.ended)
            firsts[run.key].append(run.n)
    for key, ns in firsts.items():
        if ns != published[key][: len(ns)]:
            found.append(f"order of {key}: {ns}")
    before = {(key, n): ns[place - 1] for key, ns in published.items() for place, n in enumerate(ns) if place}
    for run in runs_of(lines):
        earlier = before.get((run.key, run.n)) if run.listener == listener else None
        if earlier is not None and done.get((run.key, earlier), math.inf) > run.started:
            found.append(f"started before {earlier} had succeeded: {run}")
    return found


def overlapping(lines: Sequence[Line], listener: str, *, by_message: bool = False) -> list[str]:
    """Runs of one key, or of one event of it, that were under way at the same time."""
    latest: dict[tuple[str, int], Run] = {}
    found: list[str] = []
    for run in runs_of(lines):
        if run.listener == listener:
            scope = (run.key, run.n if by_message else 0)
            other = latest.get(scope)
            if other is not None and other.ended > run.started:
                found.append(f"overlap: {other} and {run}")
            latest[scope] = run if other is None or run.ended >= other.ended else other
    return found


def overcharged(lines: Sequence[Line], listener: str) -> list[str]:
    """Attempts that count more than the real failures before them."""
    failures: Counter[Message] = Counter()
    found: list[str] = []
    runs = {run.started: run for run in runs_of(lines)}
    for place, line in enumerate(lines):
        if line.listener != listener:
            continue
        if line.kind == "failed":
            failures[(line.key, line.n)] += 1
        elif line.kind == "start" and line.attempt > failures[(line.key, line.n)] + 1:
            found.append(f"only {failures[(line.key, line.n)]} failures before: {runs[place]}")
    return found


def repeated(lines: Sequence[Line], listener: str) -> list[str]:
    """Runs after a success, or beside a run, that no kill and no pause explains."""
    faults = interrupted(lines)
    survived: dict[Message, Run] = {}
    found: list[str] = []
    for run in runs_of(lines):
        if run.listener != listener:
            continue
        before = survived.get((run.key, run.n))
        if before is not None and before.ended < run.started:
            found.append(f"again, after {before}: {run}")
        if run.outcome == "end" and run.started > faults.get(run.pid, -1):
            survived[(run.key, run.n)] = run
    return found


def duplicates(lines: Sequence[Line], listener: str) -> int:
    """Return how many successes there were beyond the first of each event."""
    done = successes(runs_of(lines), listener)
    return sum(done.values()) - len(done)


def check(lines: Sequence[Line], listener: str, *, ordered: bool) -> list[str]:
    """Return everything that is wrong with what a listener did, once all is done."""
    found = [
        *lost(lines, listener),
        *phantoms(lines, listener),
        *overcharged(lines, listener),
        *repeated(lines, listener),
        *overlapping(lines, listener, by_message=not ordered),
    ]
    return [*found, *out_of_order(lines, listener)] if ordered else found
