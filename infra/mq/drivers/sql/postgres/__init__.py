"""The queue on PostgreSQL: every statement, and how this process asks, listens and stays alive.

The statements that are functions in the database are in the migrations 0004 and 0005, which say why, and which locks
are taken in which order.
"""
