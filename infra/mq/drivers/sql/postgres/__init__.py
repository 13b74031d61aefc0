"""The queue on PostgreSQL: its SQL statements, its connections, its notifications, and its workers' leases.

`functions/` has the functions in the database, and says in which order locks are acquired. Of the SQL driver this
package imports only what both dialects share, never `sqlite`.
"""
