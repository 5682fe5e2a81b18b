"""The migrations make the tables that the queries expect."""

from __future__ import annotations

from importlib.resources import files

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from lightship.registry.engines import reader
from lightship.registry.sqlite import HEAD, REVISIONS
from lightship.registry.tables import METADATA


def test_the_migrations_make_the_tables_of_the_queries(registry, home):
    """Alembic finds no difference."""
    with reader(home.registry).begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_the_known_revisions_are_those_of_the_files():
    """Readers, which do not load Alembic, hold the same list."""
    config = Config()
    config.set_main_option("script_location", "lightship.registry:migrations")
    script = ScriptDirectory.from_config(config)

    assert tuple(reversed([revision.revision for revision in script.walk_revisions()])) == REVISIONS
    assert script.get_current_head() == HEAD


def test_the_environment_is_part_of_the_package():
    """An installed Lightship can migrate: the files are beside the code."""
    folder = files("lightship.registry").joinpath("migrations")

    assert folder.joinpath("env.py").is_file()
    assert folder.joinpath("versions", "r0001_first.py").is_file()
