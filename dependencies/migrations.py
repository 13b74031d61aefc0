"""The two migration histories of the database, in the order in which they are applied."""

from infra.db.migrate import History

HISTORIES = (
    History("bus", "infra.db.migrations", "beneath_bus_version"),
    History("app", "models.migrations", "beneath_app_version"),
)
