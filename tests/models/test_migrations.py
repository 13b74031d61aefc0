"""Migrations create the tables of the models, with named constraints."""

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from models import Base


def names(inspector: sa.Inspector, table: str) -> set[str | None]:
    constraints = (
        *inspector.get_foreign_keys(table),
        *inspector.get_unique_constraints(table),
        *inspector.get_check_constraints(table),
        inspector.get_pk_constraint(table),
    )
    return {each["name"] for each in constraints} | {each["name"] for each in inspector.get_indexes(table)}


def differences(connection: Connection) -> object:
    options = {"compare_type": True, "compare_server_default": True, "include_name": of_the_application}
    return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)


def of_the_application(name: str | None, kind: str, _parents: object) -> bool:
    # Skips the queue's tables by name before reflection, as SQLAlchemy cannot describe their indexes.
    return not (kind == "table" and str(name).startswith("beneath_"))


def test_migrations_create_the_tables_of_the_models(migrated: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{migrated}")
    with engine.connect() as connection:
        assert differences(connection) == []
    engine.dispose()


def test_every_constraint_name_follows_the_convention(migrated: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{migrated}")
    inspector = sa.inspect(engine)
    for table in Base.metadata.sorted_tables:
        expected = {str(each.name) for each in table.constraints} | {str(each.name) for each in table.indexes}
        assert names(inspector, table.name) == expected
    engine.dispose()
