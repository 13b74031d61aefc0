"""The retry policy of a listener: the number of attempts, and the delays between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Final, Literal

from bus.errors import Discard, RetryLater
from infra.failures import describe
from infra.mq.limits import MAX_DELAY, check_choice, check_count, check_delay, check_items, check_number, shown

MAX_ATTEMPTS = 1_000_000
MAX_FACTOR = 100.0
MAX_DELAYS = 1000
JITTERS: Final = ("full", "equal", "none")

FORMULA: Final = {"min_delay": 1.0, "max_delay": 900.0, "factor": 2.0}
"""The defaults of the fields that `delays` replaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A listener's retry policy. Delays are in seconds.

    After failure n the next attempt is due in `min(max_delay, min_delay * factor ** (n - 1))` seconds, spread by
    `jitter`: "full" draws between 0 and that value, "equal" between half of it and all, "none" takes it as it is.

    `Retry(max_attempts=8, cases={RateLimited: Retry(max_attempts=50, delays=(20, 300))})` has another policy for
    attempts that raise `RateLimited`.
    """

    max_attempts: int = 10
    """Attempts in all, the first included; 1 never retries."""

    min_delay: float = FORMULA["min_delay"]
    max_delay: float = FORMULA["max_delay"]
    factor: float = FORMULA["factor"]
    jitter: Literal["full", "equal", "none"] | None = None
    """None, the default, means "full", or "none" with `delays`; it is stored as that."""

    delays: tuple[float, ...] = ()
    """The delays after the first failure, the second and so on, in place of the formula; the last one repeats."""

    after: Callable[[BaseException], float | timedelta | None] | None = None
    """A function that returns how long to wait after an error at least, None for no such limit.

    An example is `lambda error: getattr(error, "retry_after", None)`. It never shortens a delay.
    """

    cases: Mapping[type[Exception], "Retry"] = field(default_factory=dict, hash=False)
    """Policies for errors of these classes and their subclasses; that of the nearest base class applies.

    The policy of the latest error decides alone, but all failures of a delivery count: after 8 failures of any class
    a case of 8 attempts or fewer makes no further one. A timeout is a `TimeoutError`.
    """

    def __post_init__(self) -> None:
        """Check every value, and store it in a plain form, so that `delay` runs no code of a subclass.

        Raises:
            ValueError: a value has the wrong type or is out of range.
        """
        self._store("max_attempts", check_count(self.max_attempts, "Retry.max_attempts", least=1, most=MAX_ATTEMPTS))
        self._store("min_delay", check_number(self.min_delay, "Retry.min_delay", least=0, most=MAX_DELAY))
        self._store("max_delay", check_number(self.max_delay, "Retry.max_delay", least=0, most=MAX_DELAY))
        self._store("factor", check_number(self.factor, "Retry.factor", least=1, most=MAX_FACTOR))
        if self.min_delay > self.max_delay:
            raise ValueError(f"Retry needs min_delay <= max_delay, not {self.min_delay} and {self.max_delay}")
        self._store("delays", _checked_delays(self.delays))
        if self.delays and any(getattr(self, name) != default for name, default in FORMULA.items()):
            raise ValueError(f"Retry takes either delays or {', '.join(FORMULA)}: delays replaces their formula")
        if self.jitter is None:
            self._store("jitter", "none" if self.delays else "full")
        self._store("jitter", check_choice(self.jitter, "Retry.jitter", JITTERS))
        if self.after is not None and not callable(self.after):
            raise ValueError(f"Retry.after must be a function of an error, or None, not {shown(self.after)}")
        self._store("cases", _checked_cases(self.cases))

    def ceiling(self, failures: int) -> float:
        """Return the longest delay, in seconds, after `failures` failed attempts (1 or more); `after` may add to it."""
        if self.delays:
            return self.delays[min(failures, len(self.delays)) - 1]
        try:
            delay = self.min_delay * self.factor ** (failures - 1)
        except OverflowError:
            return float(self.max_delay) if self.min_delay else 0.0
        return float(min(self.max_delay, delay))

    def delay(self, failures: int, random: Random) -> float | None:
        """Return the delay in seconds before the next attempt, None if there are no attempts left."""
        if failures >= self.max_attempts:
            return None
        ceiling = self.ceiling(failures)
        match self.jitter:
            case "equal":
                return random.uniform(ceiling / 2, ceiling)
            case "none":
                return ceiling
            case _:
                return random.uniform(0.0, ceiling)

    def policy_for(self, error: BaseException) -> "Retry":
        """Return the policy after an attempt that raised `error`: that of its case, or this one."""
        if self.cases:
            for each in type(error).__mro__:
                if (case := self.cases.get(each)) is not None:
                    return case
        return self

    def wait_after(self, error: BaseException) -> float:
        """Return the seconds that `after` demands for `error`, 0 for none.

        Raises:
            ValueError: `after` returned something else than a delay.
            BaseException: `after` raised it.
        """
        wait = None if self.after is None else self.after(error)
        return 0.0 if wait is None else check_delay(wait, "what Retry.after returns")

    def _store(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _checked_delays(delays: object) -> tuple[float, ...]:
    items = check_items(delays, "Retry.delays", "tuple", "delays in seconds", MAX_DELAYS)
    return tuple(
        check_number(each, f"delay {number} of Retry.delays", least=0, most=MAX_DELAY)
        for number, each in enumerate(items, 1)
    )


def _checked_cases(cases: object) -> Mapping[type[Exception], Retry]:
    if not isinstance(cases, Mapping):
        raise ValueError(f"Retry.cases must map exception classes to a Retry, not {shown(cases)}")  # noqa: TRY004 - as above
    try:
        checked = dict(cases)
    except Exception as error:  # a mapping is a class, whose code may raise anything
        raise ValueError(f"Retry.cases cannot be read: {describe(error)}") from error
    for cls, policy in checked.items():
        if not isinstance(cls, type) or not issubclass(cls, Exception):
            raise ValueError(f"Retry.cases must map subclasses of Exception, not {shown(cls)}")  # noqa: TRY004 - as above
        if issubclass(cls, Discard | RetryLater):
            raise ValueError(f"Retry.cases cannot have {cls.__name__}: raising it is not a failure")  # noqa: TRY004 - as above
        if not isinstance(policy, Retry):
            raise ValueError(f"Retry.cases must map {cls.__name__} to a Retry, not to {shown(policy)}")  # noqa: TRY004 - as above
        if policy.cases:
            raise ValueError(
                f"the Retry for {cls.__name__} in Retry.cases has cases of its own: list them in one mapping"
            )
    return checked


DEFAULT_RETRY: Final = Retry()
"""The retry policy of a listener that has none of its own."""
