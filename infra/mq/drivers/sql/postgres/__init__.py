"""The queue on PostgreSQL: its SQL statements, its connections, its notifications, and its workers' leases.

The functions in the database are created by the migrations 0004 to 0010; 0004 and 0005 explain them, and the order in
which locks are taken.
"""
