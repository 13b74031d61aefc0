"""What the torture tests publish."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One of a sequence: step `n` of `key`."""

    key: str
    n: int

    def ordering_key(self) -> str:
        return self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Something to do, in no order: job `n` of the kind `key`."""

    key: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """Something that only newer code knows."""

    key: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chime:
    """A broadcast."""

    key: str
    n: int
