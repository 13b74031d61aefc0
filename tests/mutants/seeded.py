"""Seeded bugs: small changes of the code, each of which takes a promise away, and the tests that must notice.

`python -m tests.mutants` tries them all, each in a copy of the tree; `python -m tests.mutants NAME ...` tries some.
Whoever changes the code that one of them changes moves it along: `old` must occur exactly once in its file.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One seeded bug."""

    name: str
    kind: int
    """The kind of fault: 1 handlers, 2 arguments, 3 texts, 4 batches, 5 background tasks, 6 late answers, 7 clocks,
    8 bounds, 9 registrations, 10 the relay, 11 independence, 12 surroundings, 13 HTTP and access.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """What pytest is given; at least one of these tests must fail."""


MEMORY = ("-k", "memory")

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="argument-with-nul-is-accepted",
        kind=2,
        file="infra/mq/limits.py",
        old='and "\\0" not in text:',
        new="and text:",
        tests=("tests/infra/mq/test_limits.py",),
    ),
    Mutant(
        name="retry-delay-may-be-infinite",
        kind=2,
        file="infra/mq/limits.py",
        old="MAX_DELAY = 100 * 365.25 * 24 * 3600",
        new='MAX_DELAY = float("inf")',
        tests=("tests/infra/mq/test_limits.py",),
    ),
    Mutant(
        name="one-id-on-two-events-is-a-repetition",
        kind=2,
        file="infra/mq/drivers/memory/dedupe.py",
        old="        key = (event, message_id)\n        if key",
        new='        key = ("", message_id)\n        if key',
        tests=("tests/contract/suite/test_publish.py", *MEMORY),
    ),
    Mutant(
        name="nul-is-stored-in-texts",
        kind=3,
        file="infra/mq/limits.py",
        old='.replace(b"\\0", rb"\\x00")',
        new="",
        tests=("tests/infra/mq/test_limits.py",),
    ),
    Mutant(
        name="half-a-character-is-stored-in-texts",
        kind=3,
        file="infra/mq/limits.py",
        old='cut.decode("utf-8", "ignore")',
        new='cut.decode("utf-8", "replace")',
        tests=("tests/infra/mq/test_limits.py",),
    ),
    Mutant(
        name="background-task-dies-of-what-is-no-exception",
        kind=5,
        file="infra/supervision.py",
        old="            except BaseException as error:  # noqa: BLE001 - whatever it is, the task",
        new="            except OSError as error:  # noqa: BLE001 - whatever it is, the task",
        tests=("tests/infra/test_supervision.py",),
    ),
    Mutant(
        name="cancelled-background-task-stays-away",
        kind=5,
        file="infra/supervision.py",
        old="        elif not self._stopping:",
        new="        elif self._stopping:",
        tests=("tests/infra/test_supervision.py",),
    ),
    Mutant(
        name="repeated-settlement-ends-a-later-claim",
        kind=6,
        file="infra/mq/drivers/memory/unordered.py",
        old="entry.fence += 1",
        new="entry.fence = 1",
        tests=("tests/contract/suite/test_settle.py", *MEMORY),
    ),
    Mutant(
        name="cancelled-id-stays-taken",
        kind=10,
        file="infra/mq/drivers/memory/dedupe.py",
        old="self._accepted.pop((event, message_id), None)",
        new="return",
        tests=("tests/contract/suite/test_scheduled.py", *MEMORY),
    ),
    Mutant(
        name="failed-fork-stops-every-process",
        kind=12,
        file="cmd/beneath/processes.py",
        old="SPAWN_ERRORS = (OSError, RuntimeError, MemoryError)",
        new="SPAWN_ERRORS = (MemoryError,)",
        tests=("tests/cli/test_processes.py",),
    ),
    Mutant(
        name="connections-are-not-bounded",
        kind=13,
        file="cmd/beneath/http/connections.py",
        old="admitted = len(self._open) < self.limit or self._evict()",
        new="admitted = True",
        tests=("tests/http/test_connections.py",),
    ),
    Mutant(
        name="invites-of-the-removed-stay-open",
        kind=13,
        file="services/organization/invites.py",
        old="return held is not None and held.invites_to(invite.role)",
        new="return True",
        tests=("tests/services/test_inviters.py",),
    ),
)
