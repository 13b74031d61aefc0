"""A database's schema as text, read from its catalog, to compare schemas that were created in different ways."""

import hashlib
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator

import asyncpg  # type: ignore[import-untyped]  # it has no types

VERSION_TABLE = "beneath_bus_version"

_TABLES = """
SELECT c.oid, c.relname, c.reloptions FROM pg_class AS c
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.relname LIKE 'beneath\\_%' ORDER BY c.relname
"""
_COLUMNS = r"""
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage::text, a.attidentity::text,
    CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END,
    regexp_replace(pg_get_expr(d.adbin, d.adrelid), $re$^'(\d+)'::[a-z ]+$$re$, '\1')
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_CONSTRAINTS = """
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = $1 AND contype IN ('p', 'u', 'f', 'c') ORDER BY conname
"""
_INDEXES = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = $1 ORDER BY 1"
_SEQUENCES = """
SELECT sequencename, data_type::text, start_value, increment_by, cache_size FROM pg_sequences
WHERE sequencename LIKE 'beneath\\_%number' ORDER BY 1
"""
_FUNCTIONS = """
SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), l.lanname, p.provolatile::text,
    p.proconfig, p.prosrc
FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang WHERE p.proname LIKE 'beneath\\_%' ORDER BY 1
"""


def digest(described: list[str]) -> str:
    """Return a short hash of a described schema."""
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def describe_sqlite(db: sqlite3.Connection) -> list[str]:
    """Return the bus's tables with their columns, indexes and rows; a line for each."""
    return list(_sqlite(db))


def _sqlite(db: sqlite3.Connection) -> Iterator[str]:
    tables = db.execute(
        "SELECT name, wr FROM pragma_table_list WHERE type = 'table' AND name LIKE 'beneath\\_%' ESCAPE '\\' ORDER BY 1"
    ).fetchall()
    for name, without_rowid in tables:
        if name == VERSION_TABLE:
            continue
        yield f"table {name}{' without rowid' if without_rowid else ''}"
        for column, kind, not_null, default, key in db.execute(
            'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_xinfo(?) ORDER BY cid', (name,)
        ):
            # A number may be quoted: the column's type decides what it is.
            yield f"{name}.{column} {kind} {not_null} {str(default).strip(chr(39))} {key}"
        for index, unique, origin in db.execute(
            'SELECT name, "unique", origin FROM pragma_index_list(?) ORDER BY name', (name,)
        ):
            columns = db.execute("SELECT name FROM pragma_index_xinfo(?) WHERE key", (index,)).fetchall()
            yield f"{name} index {unique} {origin} {columns}"
        for (sql,) in db.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL ORDER BY name",
            (name,),
        ):
            yield re.sub(r"\s+", " ", sql)
        yield from sorted(f"{name} row {row}" for row in db.execute(f"SELECT * FROM {name}"))  # noqa: S608


async def describe_postgres(url: str) -> list[str]:
    """Return the bus's tables with their columns, constraints, indexes and rows, its sequences and its functions."""
    connection = await asyncpg.connect(url)
    try:
        return [line async for line in _postgres(connection)]
    finally:
        await connection.close()


async def _postgres(connection: asyncpg.Connection) -> AsyncIterator[str]:
    for oid, name, options in await connection.fetch(_TABLES):
        if name == VERSION_TABLE:
            continue
        yield f"table {name} {options}"
        for kind, query in (("column", _COLUMNS), ("constraint", _CONSTRAINTS), ("index", _INDEXES)):
            for row in await connection.fetch(query, oid):
                yield f"{name} {kind} {tuple(row)}"
        rows = await connection.fetch(f"SELECT * FROM {name}")  # noqa: S608
        for line in sorted(f"{name} row {tuple(row)}" for row in rows):
            yield line
    for kind, query in (("sequence", _SEQUENCES), ("function", _FUNCTIONS)):
        for row in await connection.fetch(query):
            yield f"{kind} {tuple(row)}"
