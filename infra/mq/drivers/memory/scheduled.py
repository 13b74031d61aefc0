"""Scheduled messages."""

from collections.abc import Iterable

from infra.mq.drivers.memory.agenda import Agenda
from infra.mq.drivers.memory.backlog import Backlog
from infra.mq.types import Message


class Scheduled:
    """One scheduled message, with the subscriptions that existed when it was accepted."""

    __slots__ = ("backlogs", "message", "plan", "ticket")

    def __init__(self, message: Message, backlogs: list[Backlog], plan: "Plan") -> None:
        self.message = message
        self.backlogs = backlogs
        self.plan = plan
        self.ticket = 0

    def fall_due(self) -> None:
        self.plan.forget(self)
        for backlog in self.backlogs:
            backlog.add(self.message)


class Plan:
    """Every scheduled message, by id."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._by_id: dict[str, list[Scheduled]] = {}

    def add(self, message: Message, due_at: float, backlogs: Iterable[Backlog]) -> None:
        """Schedule `message` for `backlogs` at its due time."""
        scheduled = Scheduled(message, list(backlogs), self)
        self._by_id.setdefault(message.id, []).append(scheduled)
        self._agenda.add(due_at, scheduled)

    def cancel(self, message_id: str) -> list[Message]:
        """Remove and return the scheduled messages with this id."""
        found = self._by_id.pop(message_id, [])
        for scheduled in found:
            self._agenda.remove(scheduled)
        return [it.message for it in found]

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._by_id

    def forget(self, scheduled: Scheduled) -> None:
        """Remove a message that is due or has no subscription left."""
        same_id = self._by_id[scheduled.message.id]
        same_id.remove(scheduled)
        if not same_id:
            del self._by_id[scheduled.message.id]

    def of(self, backlog: Backlog) -> list[Scheduled]:
        """Return the messages that are scheduled for a subscription."""
        return [it for same_id in self._by_id.values() for it in same_id if backlog in it.backlogs]

    def withdraw(self, scheduled: Scheduled, backlog: Backlog) -> None:
        """Remove a subscription from those that a message is scheduled for."""
        scheduled.backlogs.remove(backlog)
        if not scheduled.backlogs:
            self._agenda.remove(scheduled)
            self.forget(scheduled)
