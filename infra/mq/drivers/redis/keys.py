"""What the driver calls its keys. All of one partition share a hash tag, so that a Cluster keeps them together."""

from dataclasses import dataclass

GROUP = ("line", "later", "body", "plan", "idle", "own", "past", "box", "block")
"""The keys of a subscription, in the order in which scripts expect them."""

LINE = ("line", "later", "body", "plan", "idle", "own")
"""Those of them that `send.lua` expects, in this order."""

LONG = 72
"""How long the names of owners are, in bytes. Hashes with values over 64 bytes are never kept as a list that is
searched from its start: with a hundred deliveries claimed at once, that took most of a claim's time."""

PARTITION = 0
"""The only one so far. Its number is part of every key, so that more of them need no new layout."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of everything that one namespace keeps."""

    namespace: str

    @property
    def root(self) -> str:
        """What all names begin with."""
        return f"{{{self.namespace}:{PARTITION}}}"

    def of(self, name: str) -> str:
        """Return the key that the whole queue has under this name."""
        return f"{self.root}:{name}"

    def group(self, sid: str) -> tuple[str, ...]:
        """Return the keys of a subscription, in the order of `GROUP`."""
        return tuple(f"{self.root}:s:{sid}:{name}" for name in GROUP)

    def parking(self, sid: str, event: str) -> str:
        """Return the key of what is parked for an event, or for another need."""
        return f"{self.root}:s:{sid}:park:{event}"

    def parking_index(self, sid: str) -> str:
        """Return the key of the set of needs that something of a subscription is parked for: what they begin with."""
        return self.parking(sid, "")

    def old_line(self, sid: str) -> str:
        """Return the key of a line that is looked through for an event that is retired."""
        return f"{self.root}:s:{sid}:old"

    def bell(self, process: str) -> str:
        """Return the channel on which the sleepers of one process are woken."""
        return f"{self.root}:bell:{process}"

    @property
    def changes(self) -> str:
        """The channel that tells every process of a new registry."""
        return f"{self.root}:changes"

    @property
    def broadcasts(self) -> str:
        """The channel that tells every process of news."""
        return f"{self.root}:broadcasts"


def owner_name(worker: str) -> str:
    """Return what a worker is called on the server."""
    return worker.ljust(LONG, ".")
