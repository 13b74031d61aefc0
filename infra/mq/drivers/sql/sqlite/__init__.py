"""The queue on SQLite: every statement, and how this process writes, watches and stays alive."""
