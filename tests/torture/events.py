"""The events of the torture tests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An ordered event: step `n` of `key`."""

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An unordered event: job `n` of `key`."""

    key: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """An event that only newer code knows."""

    key: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chime:
    """A broadcast."""

    key: str
    n: int
