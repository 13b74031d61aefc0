"""The tracebacks that a worker has logged, so that it logs one only once for repeated failures at one place."""

from typing import Final

REMEMBERED: Final = 1000
"""Number of deliveries whose logged tracebacks a worker remembers; the oldest are forgotten first."""


class LoggedTracebacks:
    """For each recently failed delivery, the place in the code from which its last logged traceback came."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], int] = {}

    def is_new(self, listener: str, message_id: str, traceback: str) -> bool:
        """Return whether a delivery failed for the first time or at another place than before; remember the place."""
        delivery = (listener, message_id)
        place = hash("".join(line for line in traceback.splitlines() if line.lstrip(" |").startswith('File "')))
        if self._places.pop(delivery, None) == place:
            self._places[delivery] = place
            return False
        if len(self._places) >= REMEMBERED:
            del self._places[next(iter(self._places))]
        self._places[delivery] = place
        return True

    def forget(self, listener: str, message_id: str) -> None:
        """Forget a delivery, so that its next traceback is logged."""
        self._places.pop((listener, message_id), None)

    def __len__(self) -> int:
        """Return the number of deliveries that are remembered."""
        return len(self._places)
