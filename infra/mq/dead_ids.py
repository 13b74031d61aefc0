"""The ids of dead letters: numbers in decimal digits, on every driver."""

LONGEST = 18
"""The largest number of digits, so that every database stores the number as an integer."""


def number_of(dead_id: str) -> int | None:
    """Return the number of a dead letter's id; None if `dead_id` is not a valid id."""
    return int(dead_id) if dead_id.isascii() and dead_id.isdigit() and len(dead_id) <= LONGEST else None
