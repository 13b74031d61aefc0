"""The queue's migrations: the part of the bus's history that creates the tables and functions of the SQL driver.

What a revision creates never changes; a database may be at any of them. The present schema is in `sqlite/tables.sql`,
`postgres/tables.sql` and `postgres/functions/`, and tests compare it with a database that has all migrations.

`versions/` has the migrations, with the SQL that they alone use, and `former/` the functions that only earlier releases
call. The numbers continue those of `infra/db/migrations/versions`, which create the bus's other tables.
"""

from importlib.resources import files
from importlib.resources.abc import Traversable

from alembic import op


def on_postgresql() -> bool:
    """Return whether the database that is being migrated is PostgreSQL."""
    return op.get_bind().dialect.name == "postgresql"


def execute(name: str) -> None:
    """Execute a file of `versions/` on PostgreSQL; each statement ends with a semicolon at the end of its line."""
    for statement in (files(__name__) / "versions" / name).read_text("utf-8").split(";\n"):
        if statement.strip():
            op.get_bind().exec_driver_sql(statement)


def create_functions(*names: str) -> None:
    """Create functions that this release calls on PostgreSQL, each from the file `postgres/functions/NAME.sql`."""
    _create(files("infra.mq.drivers.sql.postgres.functions"), names)


def create_former_functions(*names: str) -> None:
    """Create functions of earlier releases on PostgreSQL, each from the file `former/NAME.sql`."""
    _create(files(__name__) / "former", names)


def drop_functions(*names: str) -> None:
    """Remove functions on PostgreSQL."""
    for name in names:
        op.get_bind().exec_driver_sql(f"DROP FUNCTION beneath_{name}")


def _create(folder: Traversable, names: tuple[str, ...]) -> None:
    for name in names:
        op.get_bind().exec_driver_sql((folder / f"{name}.sql").read_text("utf-8"))
