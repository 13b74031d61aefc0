"""Storage of broadcasts on PostgreSQL, for the time in which receivers read them."""

import math
from collections.abc import Sequence

from infra.db.postgresql_driver import Driver
from infra.mq.drivers.sql.postgres.publishing import FORGOTTEN_AT_ONCE

FRAMES_AT_ONCE = 1000
"""The maximum number of frames in an answer."""

BYTES_AT_ONCE = 8 * 1024 * 1024
"""The maximum size of frames in an answer beyond the first, in bytes."""

# One row issues the numbers, so that they are in the order of commits and without gaps; a transaction that has taken a
# number locks the row until COMMIT. A transaction stricter than READ COMMITTED would fail for every broadcast that
# was committed since it began.
_SEND = """
WITH last AS (
    UPDATE beneath_broadcast_last SET number = number + $3
    WHERE id = 1 AND current_setting('transaction_isolation') = 'read committed' RETURNING number
)
INSERT INTO beneath_broadcast (id, origin, at, frame)
SELECT last.number - $3 + f.place, $1, $2, f.frame FROM last, unnest($4::bytea[]) WITH ORDINALITY AS f (frame, place)
"""
_FORGET = """
WITH expired AS MATERIALIZED (
    SELECT id, at FROM beneath_broadcast WHERE at >= $3 AND at < $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM beneath_broadcast WHERE id = ANY (ARRAY(SELECT id FROM expired))
)
SELECT count(*), max(at) FROM expired
"""
_LAST = "SELECT number FROM beneath_broadcast_last WHERE id = 1"
_AFTER = """
SELECT l.number, b.id, b.origin, b.frame FROM beneath_broadcast_last AS l
LEFT JOIN LATERAL (
    SELECT m.* FROM (
        SELECT f.*, sum(f.size) OVER in_order - first_value(f.size) OVER in_order AS beyond
        FROM (
            SELECT *, octet_length(frame) AS size FROM beneath_broadcast WHERE id > $1 ORDER BY id LIMIT $2
        ) AS f WINDOW in_order AS (ORDER BY f.id)
    ) AS m WHERE m.beyond <= $3
) AS b ON true
WHERE l.id = 1 AND l.number > $1 ORDER BY b.id
"""


async def broadcast(driver: Driver, frames: Sequence[bytes], origin: str, now: float) -> bool:
    """Store frames; in a transaction stricter than READ COMMITTED store nothing and return False."""
    return await driver.execute(_SEND, origin, now, len(frames), list(frames)) != "INSERT 0 0"


async def forget_frames(driver: Driver, before: float, after: float = -math.inf) -> float | None:
    """Remove a step's worth of frames sent between `after` and `before`; return where to continue, None at the end."""
    forgotten, last = await driver.fetchrow(_FORGET, before, FORGOTTEN_AT_ONCE, after)
    return last if forgotten == FORGOTTEN_AT_ONCE else None


async def last_broadcast(driver: Driver) -> int:
    """Return the number of the last stored frame, even if it has been removed."""
    number: int = await driver.fetchval(_LAST)
    return number


async def broadcasts_after(driver: Driver, after: int, origin: str) -> tuple[list[bytes], int, bool]:
    """Return other origins' frames after number `after`, the last number read, and whether frames are missing."""
    rows = await driver.fetch(_AFTER, after, FRAMES_AT_ONCE, BYTES_AT_ONCE)
    if not rows:
        return [], after, False
    if rows[0]["id"] is None:
        return [], rows[0]["number"], True
    numbers = [row["id"] for row in rows]
    missing = numbers != list(range(after + 1, after + 1 + len(numbers)))
    return [row["frame"] for row in rows if row["origin"] != origin], numbers[-1], missing
