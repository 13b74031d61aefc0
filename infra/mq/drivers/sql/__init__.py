"""The SQL driver: a queue in the application's database, which joins its transactions. It may import `infra.db`.

`queue.py` is the queue, `dialect.py` the interface of the dialects `sqlite/` and `postgres/`. Each dialect has its
tables in `tables.sql`, and PostgreSQL its functions in `postgres/functions/`; `migrations/` creates them.
"""

from infra.mq.drivers.sql.queue import SqlQueue

__all__ = ["SqlQueue"]
