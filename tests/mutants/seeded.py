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
        name="context-of-a-delivery-reaches-the-next",
        kind=1,
        file="bus/handling.py",
        old="        context = contextvars.copy_context()\n",
        new='        context = self.__dict__.setdefault("context", contextvars.copy_context())\n',
        tests=("tests/bus/test_outcomes.py",),
    ),
    Mutant(
        name="cancellation-of-a-delivery-reaches-the-next",
        kind=1,
        file="bus/handling.py",
        old="            await _absorb_cancellation(task)\n",
        new="            pass\n",
        tests=("tests/bus/test_outcomes.py",),
    ),
    Mutant(
        name="stop-charges-an-error-in-place-of-its-cancellation",
        kind=1,
        file="bus/handling.py",
        old="        if slot.is_stopping:\n            return None",
        new="        if slot.is_stopping and isinstance(error, asyncio.CancelledError):\n            return None",
        tests=("tests/bus/test_outcomes.py",),
    ),
    Mutant(
        name="timeout-is-not-seen-behind-another-error",
        kind=1,
        file="bus/handling.py",
        old="    if slot.timed_out:\n        timeout =",
        new="    if slot.timed_out and isinstance(error, asyncio.CancelledError):\n        timeout =",
        tests=("tests/bus/test_outcomes.py",),
    ),
    Mutant(
        name="error-text-is-trusted",
        kind=1,
        file="infra/failures.py",
        old="    except BaseException as failure:  # noqa: BLE001 - it is the error's",
        new="    except ValueError as failure:  # noqa: BLE001 - it is the error's",
        tests=("tests/infra/test_supervision.py",),
    ),
    Mutant(
        name="error-text-is-not-made-storable",
        kind=1,
        file="bus/handling.py",
        old="error=storable_text(describe(error), MAX_ERROR_BYTES)",
        new="error=describe(error)",
        tests=("tests/bus/test_outcomes.py",),
    ),
    Mutant(
        name="retry-policy-is-trusted",
        kind=1,
        file="bus/handling.py",
        old='check_delay(delay, "what Retry.delay() returns")',
        new="delay",
        tests=("tests/bus/test_outcomes.py",),
    ),
    Mutant(
        name="exit-is-a-plain-failure",
        kind=1,
        file="bus/handling.py",
        old="        slot.exit = _exit_in(error)\n",
        new="        slot.exit = None\n",
        tests=("tests/bus/test_exits.py",),
    ),
    Mutant(
        name="exit-gives-its-delivery-back",
        kind=1,
        file="bus/session.py",
        old="            self._consumer.abandon()  # as after a kill",
        new="            pass  # as after a kill",
        tests=("tests/bus/test_exits.py",),
    ),
    Mutant(
        name="committed-handler-is-given-up",
        kind=1,
        file="bus/handling.py",
        old="            if committed:\n",
        new="            if committed and delivery.crashes < 0:\n",
        tests=("tests/bus/test_once.py",),
    ),
    Mutant(
        name="cancellation-after-commit-fails-the-delivery",
        kind=1,
        file="bus/inbox.py",
        old="        self._committed()\n",
        new="        pass\n",
        tests=("tests/bus/test_once.py",),
    ),
    Mutant(
        name="wrapped-handler-is-not-awaited",
        kind=1,
        file="bus/calling.py",
        old="        if isawaitable(ended.result):",
        new="        if ended.result is self:",
        tests=("tests/bus/test_outcomes.py",),
    ),
    Mutant(
        name="panic-of-a-broadcast-listener-is-not-contained",
        kind=1,
        file="bus/broadcasts.py",
        old="        except BaseException as error:\n",
        new="        except Exception as error:\n",
        tests=("tests/bus/test_broadcast.py",),
    ),
    Mutant(
        name="delivery-begins-after-an-exit",
        kind=1,
        file="bus/session.py",
        old="            not self._is_ending() and not self",
        new="            not self._stopping.is_set() and not self",
        tests=("tests/bus/hostile/test_hostile.py", "-k", "outlives_whatever_handlers_do and not driver"),
    ),
    Mutant(
        name="thread-that-cannot-start-is-a-failure",
        kind=1,
        file="bus/handling.py",
        old="            case NoThread():",
        new="            case NoThread() if slot.stopping:",
        tests=("tests/bus/test_outcomes.py",),
    ),
    Mutant(
        name="rejected-settlement-holds-up-the-others",
        kind=4,
        file="bus/settler.py",
        old="        if isinstance(error, TRANSIENT) and not is_final(error):",
        new="        if isinstance(error, Exception):",
        tests=("tests/bus/test_settler.py",),
    ),
    Mutant(
        name="stop-ends-at-the-next-cancellation",
        kind=6,
        file="bus/stopping.py",
        old="            self.cancelled = error\n            return event.is_set()",
        new="            self.cancelled = error\n            raise",
        tests=("tests/bus/test_cancellation.py",),
    ),
    Mutant(
        name="supervisor-never-gives-up",
        kind=5,
        file="infra/supervision.py",
        old="        if given_up:\n",
        new="        if given_up and not health.failures:\n",
        tests=("tests/infra/test_supervision.py",),
    ),
    Mutant(
        name="settler-waits-for-new-work-when-it-begins-again",
        kind=6,
        file="bus/settler.py",
        old="            await self.drain()\n            await self._wanted.wait()",
        new="            await self._wanted.wait()\n            await self.drain()",
        tests=("tests/bus/test_settler.py",),
    ),
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
