"""The retry policy of a listener: the number of attempts, and the delays between them."""

from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from infra.mq.limits import MAX_DELAY, check_choice, check_count, check_number

MAX_ATTEMPTS = 1_000_000
MAX_FACTOR = 100.0
JITTERS: Final = ("full", "equal", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A listener's retry policy. Delays are in seconds.

    After failure n the next attempt is due in `min(max_delay, min_delay * factor ** (n - 1))` seconds, spread by
    `jitter`: "full" draws between 0 and that value, "equal" between half of it and all, "none" takes it as it is.
    """

    max_attempts: int = 10
    """Attempts in all, the first included; 1 never retries."""

    min_delay: float = 1.0
    max_delay: float = 900.0
    factor: float = 2.0
    jitter: Literal["full", "equal", "none"] = "full"

    def __post_init__(self) -> None:
        """Check every value, and store it as a plain number or text, so that `delay` runs no code of a subclass.

        Raises:
            ValueError: a value has the wrong type or is out of range.
        """
        plain: dict[str, int | float | str] = {
            "max_attempts": check_count(self.max_attempts, "Retry.max_attempts", least=1, most=MAX_ATTEMPTS),
            "min_delay": check_number(self.min_delay, "Retry.min_delay", least=0, most=MAX_DELAY),
            "max_delay": check_number(self.max_delay, "Retry.max_delay", least=0, most=MAX_DELAY),
            "factor": check_number(self.factor, "Retry.factor", least=1, most=MAX_FACTOR),
            "jitter": check_choice(self.jitter, "Retry.jitter", JITTERS),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.min_delay > self.max_delay:
            raise ValueError(f"Retry needs min_delay <= max_delay, not {self.min_delay} and {self.max_delay}")

    def ceiling(self, failures: int) -> float:
        """Return the longest delay, in seconds, after `failures` failed attempts (1 or more)."""
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
            case "full":
                return random.uniform(0.0, ceiling)
            case "equal":
                return random.uniform(ceiling / 2, ceiling)
            case "none":
                return ceiling


DEFAULT_RETRY: Final = Retry()
"""The retry policy of a listener that has none of its own."""
