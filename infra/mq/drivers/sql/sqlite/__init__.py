"""The queue on SQLite: its SQL statements, its writer thread, its polling, and its workers' lock files.

Of the SQL driver this package imports only what both dialects share, never `postgres`.
"""
