"""Items ordered by their due time."""

import asyncio
import heapq
import itertools
from typing import Protocol

_KEEP_STALE = 64


class AgendaItem(Protocol):
    """An item with a due time."""

    ticket: int
    """The number of its valid entry in the agenda; 0 without one."""

    def fall_due(self) -> None:
        """Continue with the item, which is due now."""
        ...


class Agenda:
    """Items by due time, earliest first; items of equal time in the order of arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, AgendaItem]] = []
        self._tickets = itertools.count(1)
        self._stale = 0
        self.listeners: set[asyncio.Event] = set()
        """Events to set when an added item is due before all other items."""

    def add(self, due_at: float, item: AgendaItem) -> None:
        """Schedule `item` for `due_at`."""
        item.ticket = next(self._tickets)
        heapq.heappush(self._heap, (due_at, item.ticket, item))
        if self.listeners and self._heap[0][2] is item:
            for event in self.listeners:
                event.set()

    def remove(self, item: AgendaItem) -> None:
        """Remove `item`; does nothing if it is not scheduled."""
        if not item.ticket:
            return
        item.ticket = 0
        self._stale += 1
        if self._stale > _KEEP_STALE and self._stale * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].ticket]
            heapq.heapify(self._heap)
            self._stale = 0

    def promote(self, now: float) -> None:
        """Remove every item that is due at `now`, and call its `fall_due`."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, ticket, item = heapq.heappop(heap)
            if item.ticket == ticket:
                item.ticket = 0
                item.fall_due()
            else:
                self._stale -= 1

    def next_due(self) -> float | None:
        """Return the due time of the next item; None without items."""
        while self._heap and self._heap[0][1] != self._heap[0][2].ticket:
            heapq.heappop(self._heap)
            self._stale -= 1
        return self._heap[0][0] if self._heap else None
