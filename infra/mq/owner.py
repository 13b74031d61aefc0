"""The check with which every call of a queue begins: the queue is open, and belongs to the running event loop."""

from infra.mq.errors import QueueClosed
from infra.ownership import LoopOwner


class QueueOwner(LoopOwner):
    """The event loop that a queue belongs to while it is open."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("the queue")

    def check(self) -> None:
        """Check that the queue is open, in the running event loop.

        Raises:
            QueueClosed: it is not open.
            WrongEventLoop: it is open, but belongs to another event loop, thread or process.
        """
        if not self.is_here():
            raise QueueClosed("the queue is not open")
