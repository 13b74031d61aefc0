"""Joinable operations: the writer runs consecutive ones of a group in one call."""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Self, cast

from infra.mq.drivers.sql.sqlite.connection import Operation


class Joinable(ABC):
    """An operation without a result; a group runs consecutive operations of one class in one call."""

    __slots__ = ()

    @classmethod
    @abstractmethod
    def run_all(cls, db: sqlite3.Connection, operations: Sequence[Self]) -> None:
        """Run `operations`, at least one, with the same effect as running them one after the other."""

    def __call__(self, db: sqlite3.Connection) -> None:
        """Run this operation alone."""
        self.run_all(db, [self])


def run_in_order(db: sqlite3.Connection, operations: Sequence[Operation[Any]]) -> list[Any]:
    """Run operations in order, joining consecutive ones where possible; return the result of each."""
    results: list[Any] = []
    for kind, run in groupby(operations, key=type):
        if issubclass(kind, Joinable):
            joined = cast("list[Joinable]", list(run))
            kind.run_all(db, joined)
            results += [None] * len(joined)
        else:
            results += [operation(db) for operation in run]
    return results
