"""The two migration histories of the database, in the order in which they are applied."""

from infra.db.histories import History

BUS = History("bus", "infra.db.migrations", "beneath_bus_version", parts=("infra.mq.drivers.sql.migrations",))
"""The bus's tables: those of the outbox and inbox, and those of the queue."""

HISTORIES = (BUS, History("app", "models.migrations", "beneath_app_version"))
