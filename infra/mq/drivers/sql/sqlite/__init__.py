"""The queue on SQLite: its SQL statements, its writer thread, its polling, and its workers' lock files."""
