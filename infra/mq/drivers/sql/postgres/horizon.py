"""Warnings about transactions that prevent PostgreSQL from removing dead rows, which slows down claims."""

from typing import Any

from infra.db.postgresql_driver import Driver

LONG = 60.0
"""Seconds after which an open transaction is reported."""

MANY_TRANSACTIONS = 20_000
"""The number of later transactions after which it is reported if its age is not visible to the role."""

MANY_DEAD = 200_000
"""The number of dead rows in a table that is reported by itself; autovacuum is set to run at 2000."""

_HOLDERS = """
SELECT what, pid, name, state, seconds, xids FROM (
    SELECT 'transaction' AS what, pid, coalesce(nullif(application_name, ''), usename, '?') AS name, state,
        extract(epoch FROM clock_timestamp() - xact_start)::double precision AS seconds,
        age(coalesce(backend_xmin, backend_xid)) AS xids
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND coalesce(backend_xmin, backend_xid) IS NOT NULL
    UNION ALL
    SELECT 'prepared transaction', NULL, gid, NULL,
        extract(epoch FROM clock_timestamp() - prepared)::double precision, age(transaction)
    FROM pg_prepared_xacts WHERE database = current_database()
    UNION ALL
    SELECT 'replica', pid, coalesce(nullif(application_name, ''), '?'), state, NULL, age(backend_xmin)
    FROM pg_stat_replication WHERE backend_xmin IS NOT NULL
    UNION ALL
    SELECT 'replication slot', active_pid, slot_name::text, NULL, NULL, age(xmin)
    FROM pg_replication_slots WHERE xmin IS NOT NULL
) AS holders
ORDER BY xids DESC LIMIT 1
"""
_DEAD = """
SELECT relname::text, n_dead_tup FROM pg_stat_user_tables
WHERE relid IN (to_regclass('beneath_delivery'), to_regclass('beneath_mailbox'), to_regclass('beneath_accepted'))
ORDER BY n_dead_tup DESC, relname LIMIT 1
"""


async def warnings(driver: Driver) -> list[str]:
    """Return a line if dead rows cannot be removed or are many, with the cause and the remedy."""
    table, dead = await driver.fetchrow(_DEAD)
    holder = await driver.fetchrow(_HOLDERS)
    if holder is not None and _is_old(holder):
        so_far = f"meanwhile PostgreSQL can remove no dead rows ({table} has {dead}), and the queue becomes slower"
        return [f"{_described(holder)}; {so_far}: {_remedy(holder)}"]
    if dead >= MANY_DEAD:
        return [f"{table} has {dead} dead rows: check that autovacuum is on and keeps up, or run VACUUM {table}"]
    return []


def _is_old(holder: Any) -> bool:  # noqa: ANN401  # a row of the driver
    if holder["seconds"] is None:
        return bool(holder["xids"] >= MANY_TRANSACTIONS)
    return bool(holder["seconds"] >= LONG)


def _described(holder: Any) -> str:  # noqa: ANN401  # a row of the driver
    details = [str(it) for it in (holder["pid"] and f"pid {holder['pid']}", holder["state"]) if it]
    who = f"the {holder['what']} of {holder['name']!r}" + (f" ({', '.join(details)})" if details else "")
    age = f"{holder['xids']} transactions" if holder["seconds"] is None else f"{holder['seconds']:.0f} s"
    return f"{who} has been open for {age}"


def _remedy(holder: Any) -> str:  # noqa: ANN401  # a row of the driver
    match holder["what"]:
        case "transaction":
            return f"let it end, or SELECT pg_terminate_backend({holder['pid']})"
        case "prepared transaction":
            return f"COMMIT PREPARED or ROLLBACK PREPARED '{holder['name']}'"
        case "replica":
            return "end the long query there, or switch its hot_standby_feedback off"
        case _:
            return f"let its replica catch up, or SELECT pg_drop_replication_slot('{holder['name']}')"
