"""The invariants of a simulation, checked by its journal; each violation is reported as a line."""

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from infra.mq.types import DeadLetter
from tests.simulation.listeners import DEADLY, FEW, HOPELESS, LEGACY
from tests.simulation.program import MAX_CRASHES, Program
from tests.torture import checker
from tests.torture.journal import Line

Row = tuple[str, str, int]

DEADLY_ID = f"Step {DEADLY[0]} {DEADLY[1]}"


KINDS = {"alarm": "Alarm", "note_line": "Note", "notes": "Note", LEGACY: "Note"}
"""The kind of event that each listener handles; listeners not named here handle "Step"."""


def check(
    lines: Sequence[Line],
    programs: Sequence[Program],
    dead: Sequence[DeadLetter],
    rows: Sequence[Row],
    *,
    has_database: bool,
    restored: int,
) -> list[str]:
    """Return all violations; keys begun before the line `restored` are exempt, as the server lost its data."""
    found = [
        f"worker of {it.process.pid} ended: {type(it.worker_error).__name__}"
        for it in programs
        if it.worker_error is not None
    ]
    found += [f"publishing raised {error}" for it in programs for error in it.unexpected_errors]
    lost = {line.key for line in lines[:restored] if line.kind == "note" and line.text.startswith("tried")}
    lines = [line for line in lines if line.key not in lost]
    dead = [letter for letter in dead if _key_of(letter) not in lost]
    rows = [row for row in rows if row[1] not in lost]
    steps, alarms, notes = (_with_certainty(lines, kind) for kind in ("Step", "Alarm", "Note"))
    for name in ("ordered", "once") if has_database else ("ordered",):
        found += _in_order(steps, name)
    # For `once` the table tells whether the handler was repeated: its COMMIT, which may fail, follows its end.
    found += [*checker.overcharged(steps, "ordered"), *_repeated(steps, "ordered")]
    found += [*_in_order(notes, "note_line"), *checker.overcharged(notes, "note_line"), *_repeated(notes, "note_line")]
    for name in ("sibling", "threaded"):
        found += _unordered(steps, name)
    found += _unordered(alarms, "alarm")
    found += _unordered(notes, "notes")
    found += [it for it in _unordered(steps, "giving_up") if not it.startswith("lost") or f"/{HOPELESS}" not in it]
    found += _dead_letters(steps, dead, deadly=any(it.deadly for it in programs))
    found += _read_by_old_code(notes, programs)
    found += _legacy(notes, dead, flushed=restored > 0)
    found += _early(lines)
    found += _broadcast_twice(lines)
    if has_database:
        found += _effects(steps, rows)
    return found


def _in_order(lines: Sequence[Line], listener: str) -> list[str]:
    return [
        *checker.lost(lines, listener),
        *checker.phantoms(lines, listener),
        *checker.overlapping(lines, listener),
        *checker.out_of_order(lines, listener),
    ]


def _unordered(lines: Sequence[Line], listener: str) -> list[str]:
    return [
        *checker.lost(lines, listener),
        *checker.phantoms(lines, listener),
        *checker.overcharged(lines, listener),
        *_repeated(lines, listener),
    ]


def _repeated(lines: Sequence[Line], listener: str) -> list[str]:
    """Return the runs after a success that no fault explains, in the process of either run."""
    faults = checker.interrupted(lines)
    survived: dict[checker.Message, checker.Run] = {}
    found: list[str] = []
    for run in checker.runs_of(lines):
        if run.listener != listener or run.started < faults.get(run.process, -1):
            continue
        before = survived.get((run.key, run.n))
        if before is not None and before.ended < run.started:
            found.append(f"again, after {before}: {run}")
        if run.outcome == "end":
            survived[(run.key, run.n)] = run
    return found


def _with_certainty(lines: Sequence[Line], event: str) -> list[Line]:
    """Return the lines with the publishes of one event only; those whose process died unanswered count if handled."""
    wanted = [it for it in lines if it.kind != "accepted" or it.listener == event]
    accepted = {(it.key, it.n) for it in wanted if it.kind == "accepted"}
    starts = [it for it in lines if it.kind == "start" and KINDS.get(it.listener, "Step") == event]
    handled = {(it.key, it.n) for it in starts}
    tried = [it for it in lines if it.kind == "note" and it.listener == event and it.text.startswith("tried")]
    unsure = [it for it in tried if (it.key, it.n) not in accepted and (it.key, it.n) in handled]
    return [*wanted, *(replace(it, kind="accepted") for it in unsure)]


def _dead_letters(steps: Sequence[Line], dead: Sequence[DeadLetter], *, deadly: bool) -> list[str]:
    found = []
    buried: Counter[str] = Counter()
    for letter in dead:
        if letter.subscription == LEGACY:
            continue
        hopeless = letter.subscription == "giving_up" and letter.message_id.endswith(f" {HOPELESS}")
        killer = letter.subscription == "deadly" and letter.message_id == DEADLY_ID
        charged = (letter.failures, letter.crashes)
        if not (hopeless and letter.failures == FEW.max_attempts) and not (killer and charged == (0, MAX_CRASHES)):
            found.append(f"wrongly charged: {letter}")
        buried[letter.message_id] += hopeless or killer
    accepted = {f"Step {key} {n}" for key, ns in checker.accepted(steps).items() for n in ns}
    for message_id in sorted(accepted):
        wanted = message_id.endswith(f" {HOPELESS}") or (deadly and message_id == DEADLY_ID)
        if wanted and buried[message_id] != 1:
            found.append(f"lost: {buried[message_id]} dead letters of {message_id}")
    return found


def _read_by_old_code(notes: Sequence[Line], programs: Sequence[Program]) -> list[str]:
    """Return the runs of old code for events or versions that only the new code knows."""
    old = {it.process.pid for it in programs if it.version == 1}
    readable = {(it.key, it.n) for it in notes if it.text in {"Note", "tried Note"}}
    return [
        f"read by old code: {it}"
        for it in notes
        if it.kind == "start"
        and it.process in old
        and KINDS.get(it.listener) == "Note"
        and (it.key, it.n) not in readable
    ]


def _legacy(notes: Sequence[Line], dead: Sequence[DeadLetter], *, flushed: bool) -> list[str]:
    """Check the retired listener: each delivery that it had at its final retirement was handled or is a dead letter."""
    found = [*checker.phantoms(notes, LEGACY), *checker.overcharged(notes, LEGACY), *_repeated(notes, LEGACY)]
    if flushed:
        return found
    retired = max((place for place, it in enumerate(notes) if it.listener == "retired"), default=-1)
    young = {it.process for it in notes[retired + 1 :] if it.listener == "started" and it.text == "version 1"}
    declared = next((place for place, it in enumerate(notes) if it.kind == "ready" and it.process in young), len(notes))
    ended = {it.message_id for it in dead if it.subscription == LEGACY}
    ended |= {f"Note {key} {n}" for key, n in checker.successes(checker.runs_of(notes), LEGACY)}
    tried = {(it.key, it.n) for it in notes[declared:] if it.kind == "note" and it.text.startswith("tried")}
    of_it = {(it.key, it.n) for it in notes if it.kind == "accepted" and not it.text.endswith("Postscript")}
    return [
        *found,
        *(f"lost by {LEGACY}: {key}/{n}" for key, n in sorted(tried & of_it) if f"Note {key} {n}" not in ended),
    ]


def _key_of(letter: DeadLetter) -> str:
    _, key, _ = letter.message_id.split(" ")
    return key


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
    heard = Counter((it.process, it.id) for it in lines if it.kind == "note" and it.listener == "chime")
    return [f"broadcast twice: {it}" for it, count in heard.items() if count > 1]


def _effects(steps: Sequence[Line], rows: Sequence[Row]) -> list[str]:
    counts = Counter(rows)
    accepted = {(key, n) for key, ns in checker.accepted(steps).items() for n in ns}
    found = [f"once, but {counts[('once', *it)]} times: {it}" for it in sorted(accepted) if counts[("once", *it)] != 1]
    found += [f"phantom row: {it}" for it in counts if it[1:] not in accepted]
    return found
