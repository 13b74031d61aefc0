"""What must hold whatever went wrong; a line for each break."""

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from infra.mq.types import DeadLetter
from tests.simulation.listeners import FEW, HOPELESS
from tests.simulation.program import Program
from tests.torture import checker
from tests.torture.journal import Line

Row = tuple[str, str, int]


def check(
    lines: Sequence[Line], programs: Sequence[Program], dead: Sequence[DeadLetter], rows: Sequence[Row]
) -> list[str]:
    """Return everything that is wrong."""
    steps = _with_certainty(lines, "Step")
    alarms = _with_certainty(lines, "Alarm")
    found = [
        f"worker of {it.process.pid} ended: {type(it.worker_error).__name__}"
        for it in programs
        if it.worker_error is not None
    ]
    found += [f"publishing raised {error}" for it in programs for error in it.surprises]
    for name in ("ordered", "once") if rows else ("ordered",):
        found += [*checker.lost(steps, name), *checker.phantoms(steps, name)]
        found += [*checker.overlapping(steps, name), *checker.out_of_order(steps, name)]
    # Of a once handler the rows tell whether it was repeated: its COMMIT, which may fail, comes after its end.
    found += [*checker.overcharged(steps, "ordered"), *_repeated(steps, "ordered")]
    for name in ("sibling", "threaded"):
        found += _unordered(steps, name)
    found += _unordered(alarms, "alarm")
    found += [it for it in _unordered(steps, "giving_up") if not it.startswith("lost") or f"/{HOPELESS}" not in it]
    found += _dead_letters(steps, dead)
    found += _early(lines)
    found += _broadcast_twice(lines)
    if rows:
        found += _effects(steps, rows)
    return found


def _unordered(lines: Sequence[Line], listener: str) -> list[str]:
    return [
        *checker.lost(lines, listener),
        *checker.phantoms(lines, listener),
        *checker.overcharged(lines, listener),
        *_repeated(lines, listener),
    ]


def _repeated(lines: Sequence[Line], listener: str) -> list[str]:
    """Return the runs after a success that no fault explains: one of the process that succeeded, or of theirs."""
    faults = checker.interrupted(lines)
    survived: dict[checker.Message, checker.Run] = {}
    found: list[str] = []
    for run in checker.runs_of(lines):
        if run.listener != listener or run.started < faults.get(run.pid, -1):
            continue
        before = survived.get((run.key, run.n))
        if before is not None and before.ended < run.started:
            found.append(f"again, after {before}: {run}")
        if run.outcome == "end":
            survived[(run.key, run.n)] = run
    return found


def _with_certainty(lines: Sequence[Line], event: str) -> list[Line]:
    """Return the lines with the publishes of one event alone, also those whose process died before it knew of them."""
    wanted = [it for it in lines if it.kind != "accepted" or it.listener == event]
    accepted = {(it.key, it.n) for it in wanted if it.kind == "accepted"}
    starts = [it for it in lines if it.kind == "start" and (it.listener == "alarm") == (event == "Alarm")]
    handled = {(it.key, it.n) for it in starts}
    tried = [it for it in lines if it.kind == "note" and it.listener == event and it.text.startswith("tried")]
    unsure = [it for it in tried if (it.key, it.n) not in accepted and (it.key, it.n) in handled]
    return [*wanted, *(replace(it, kind="accepted") for it in unsure)]


def _dead_letters(steps: Sequence[Line], dead: Sequence[DeadLetter]) -> list[str]:
    found = []
    buried: Counter[str] = Counter()
    for letter in dead:
        if (
            letter.subscription != "giving_up"
            or not letter.message_id.endswith(f" {HOPELESS}")
            or letter.failures != FEW.max_attempts
        ):
            found.append(f"wrongly charged: {letter}")
        buried[letter.message_id] += 1
    for key, ns in checker.accepted(steps).items():
        if HOPELESS in ns and buried[f"Step {key} {HOPELESS}"] != 1:
            found.append(f"lost: {buried[f'Step {key} {HOPELESS}']} dead letters of {key}/{HOPELESS}")
    return found


def _early(lines: Sequence[Line]) -> list[str]:
    earliest = {
        (it.key, it.n): float(it.text.removeprefix("tried "))
        for it in lines
        if it.kind == "note" and it.listener == "Alarm"
    }
    return [
        f"early: {it.key}/{it.n} at {it.at}, not before {earliest[(it.key, it.n)]}"
        for it in lines
        if it.kind == "start" and it.listener == "alarm" and it.at < earliest[(it.key, it.n)]
    ]


def _broadcast_twice(lines: Sequence[Line]) -> list[str]:
    heard = Counter((it.pid, it.id) for it in lines if it.kind == "note" and it.listener == "chime")
    return [f"broadcast twice: {it}" for it, count in heard.items() if count > 1]


def _effects(steps: Sequence[Line], rows: Sequence[Row]) -> list[str]:
    counts = Counter(rows)
    accepted = {(key, n) for key, ns in checker.accepted(steps).items() for n in ns}
    found = [f"once, but {counts[('once', *it)]} times: {it}" for it in sorted(accepted) if counts[("once", *it)] != 1]
    found += [f"phantom row: {it}" for it in counts if it[1:] not in accepted]
    return found
