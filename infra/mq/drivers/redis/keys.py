"""The names of the driver's keys and channels.

All keys of a partition share a hash tag, so that a Cluster would keep them together. The names are stored data: other
releases use the same ones.
"""

from dataclasses import dataclass

GROUP = ("line", "later", "body", "plan", "idle", "own", "past", "box", "block")
"""The keys of a subscription, in the order in which scripts expect them; `lua/common.lua` describes each."""

LINE = ("line", "later", "body", "plan", "idle", "own")
"""The keys of a subscription that `send.lua` expects, in this order."""

WAITING = "sleepers"
"""The name of the key of waiting workers. It must stay: a process of another release that hands a message over reads
this key, and passes over waiting workers that are missing in it without waking them up."""

LONG = 72
"""Length of the names of owners, in bytes. A hash with values over 64 bytes is never stored as a list, in which each
read searches from the start: with a hundred claimed deliveries that took most of a claim's time."""

PARTITION = 0
"""The number of the only partition, which is part of every key, so that further partitions need no new layout."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of all keys and channels of one namespace."""

    namespace: str

    @property
    def root(self) -> str:
        """The prefix of all names."""
        return f"{{{self.namespace}:{PARTITION}}}"

    def of(self, name: str) -> str:
        """Return a key of the whole queue.

        - `meta`: HASH of the registry (`r`), its version (`v`) and time (`t`), the last reserved number (`n`),
          the clock (`h`, `s`), the last broadcast (`b`), whether large messages were published (`large`), and the
          number of dead letters of each sid (`d:<sid>`).
        - `workers`: HASH of worker -> listeners, host, pid, lease and waiter id. `leases`: ZSET of workers by the time
          at which their lease expires, 0 for an abandoned one. `since`: HASH of worker -> time since which it has
          reached the server without a break. `claims`: HASH of worker -> number of its last claim. `WAITING`: HASH of
          waiting worker -> number of the claim request by which it waits.
        - `accepted`: ZSET of "event NUL id" by the time of acceptance. `dedupe`: the same of earlier releases, with ids
          alone. `resent`: the same for messages that may be sent again after the dedupe window.
        - `plans`: ZSET of scheduled messages by due time. `planned`: HASH of message id -> its entries in `plans`.
        - `dead`: HASH of dead letters by number. `deads`: ZSET of "number:sid:event" by number.
        - `retiring`: HASH of sid -> note of a retirement in progress. `news`: STREAM of broadcasts.
        """
        return f"{self.root}:{name}"

    def group(self, sid: str) -> tuple[str, ...]:
        """Return the keys of a subscription, in the order of `GROUP`."""
        return tuple(f"{self.root}:s:{sid}:{name}" for name in GROUP)

    def parking(self, sid: str, event: str) -> str:
        """Return the key of the set of deliveries, or mailboxes, that are parked for an event or another need."""
        return f"{self.root}:s:{sid}:park:{event}"

    def parking_index(self, sid: str) -> str:
        """Return the key of the set of needs for which a subscription has parked deliveries."""
        return self.parking(sid, "")

    def old_line(self, sid: str) -> str:
        """Return the key of the due deliveries that a retirement of one event has not checked yet."""
        return f"{self.root}:s:{sid}:old"

    def removed(self, sid: str, token: str) -> str:
        """Return the key of the number of deliveries that one retirement has removed."""
        return f"{self.root}:removed:{sid}:{token}"

    def notifications(self, process: str) -> str:
        """Return the channel of the notifications for the waiters of one process."""
        return f"{self.root}:notify:{process}"

    @property
    def changes(self) -> str:
        """The channel that notifies every process of a changed registry."""
        return f"{self.root}:changes"

    @property
    def broadcasts(self) -> str:
        """The channel that notifies every process of a broadcast."""
        return f"{self.root}:broadcasts"


def owner_name(worker: str) -> str:
    """Return the name of a worker as an owner of claims."""
    return worker.ljust(LONG, ".")
