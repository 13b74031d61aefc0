"""The verifier: reads a journal and returns a line for each violation of an invariant.

A handler's run begins at its "start" line and ends at its "end", "failed" or "cancelled" line. If its process was
killed, it ends at the "killing" line, which is written just before the signal is sent, or at that process's last line.
If its process was paused for longer than its lease, it ends at the "pausing" line, which is written once the process
has stopped: the run may continue later, but its result does not count, and it does not overlap with its replacement. If
its process was cut off from the queue, until the "cut off" line, its result may not have counted; an ordered run must
not overlap with its replacement.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.torture.journal import Kind, Line

Message = tuple[str, int]
"""An event: its key and its number in it."""

_ENDS: frozenset[Kind] = frozenset({"end", "failed", "cancelled"})


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of a handler for an event. Places are line numbers."""

    listener: str
    key: str
    n: int
    attempt: int
    process: int
    started: int
    at: float
    ended: float = math.inf
    outcome: Kind | None = None

    def __str__(self) -> str:
        return f"{self.listener} {self.key}/{self.n} attempt {self.attempt} in {self.process} (line {self.started + 1})"


def runs_of(lines: Sequence[Line]) -> list[Run]:
    """Return all runs, in the order of their starts."""
    runs: list[Run] = []
    running: dict[tuple[str, str, int, int], Run] = {}
    for place, line in enumerate(lines):
        run_id = (line.listener, line.key, line.n, line.process)
        if line.kind == "start":
            run = Run(
                listener=line.listener,
                key=line.key,
                n=line.n,
                attempt=line.attempt,
                process=line.process,
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
                if run.process == line.process:
                    run.ended = place
    # A run that began between that line and the signal ended at the process's last line.
    written = {line.process: place for place, line in enumerate(lines)}
    killed = {line.process for line in lines if line.kind == "killing"}
    for run in running.values():
        if run.process in killed and run.ended == math.inf:
            run.ended = written[run.process]
    return runs


def accepted(lines: Iterable[Line]) -> dict[str, list[int]]:
    """Return the numbers of accepted events in publish order, by key."""
    published: dict[str, list[int]] = defaultdict(list)
    for line in lines:
        if line.kind == "accepted":
            published[line.key].append(line.n)
    return published


def interrupted(lines: Iterable[Line]) -> dict[int, float]:
    """Return, by process, the line until which results may not have counted because of a kill, pause or partition."""
    places: dict[int, float] = {}
    for place, line in enumerate(lines):
        if line.kind == "killing":
            places[line.process] = math.inf
        elif line.kind in {"pausing", "cut off"}:
            places[line.process] = max(place, places.get(line.process, 0))
    return places


def successes(runs: Iterable[Run], listener: str) -> Counter[Message]:
    """Return the number of successful runs per event."""
    return Counter((run.key, run.n) for run in runs if run.listener == listener and run.outcome == "end")


def lost(lines: Sequence[Line], listener: str) -> list[str]:
    """Return a line for each accepted event that was never handled."""
    done = successes(runs_of(lines), listener)
    return [f"lost: {key}/{n}" for key, ns in accepted(lines).items() for n in ns if not done[(key, n)]]


def phantoms(lines: Sequence[Line], listener: str) -> list[str]:
    """Return a line for each handled event that was never accepted."""
    published = {(key, n) for key, ns in accepted(lines).items() for n in ns}
    return [
        f"phantom: {run}" for run in runs_of(lines) if run.listener == listener and (run.key, run.n) not in published
    ]


def out_of_order(lines: Sequence[Line], listener: str) -> list[str]:
    """Return first successes out of publish order, and runs that began before the previous event succeeded."""
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
    """Return the overlapping runs of one key, or of one event."""
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
    """Return the runs whose attempt number exceeds the failures before them."""
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
    """Return runs after a success, or overlapping with another run, without a kill or pause that explains them."""
    faults = interrupted(lines)
    survived: dict[Message, Run] = {}
    found: list[str] = []
    for run in runs_of(lines):
        if run.listener != listener:
            continue
        before = survived.get((run.key, run.n))
        if before is not None and before.ended < run.started:
            found.append(f"again, after {before}: {run}")
        if run.outcome == "end" and run.started > faults.get(run.process, -1):
            survived[(run.key, run.n)] = run
    return found


def duplicates(lines: Sequence[Line], listener: str) -> int:
    """Return the number of successes beyond the first of each event."""
    done = successes(runs_of(lines), listener)
    return sum(done.values()) - len(done)


def check(lines: Sequence[Line], listener: str, *, ordered: bool) -> list[str]:
    """Return all violations of a listener, once everything is handled."""
    found = [
        *lost(lines, listener),
        *phantoms(lines, listener),
        *overcharged(lines, listener),
        *repeated(lines, listener),
        *overlapping(lines, listener, by_message=not ordered),
    ]
    return [*found, *out_of_order(lines, listener)] if ordered else found
