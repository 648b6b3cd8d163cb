"""The migrations of this release as SQL.

Alembic's `op` is a global object: a script that ran on a connection could use that of another shard. So no script
does. Each runs once and yields its SQL, which all shards then run, and which the tests check.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cart_grpc.store.revisions import VERSIONS

if TYPE_CHECKING:
    from alembic.script import Script as AlembicScript


@dataclass(frozen=True, slots=True)
class Script:
    """One migration, as its script declares it.

    `statements`: its SQL. `transactional`: it runs in one transaction. `oldest_revision`: it contracts the schema, and
    releases whose schema is older can no longer use the database.
    """

    revision: str
    title: str
    statements: Sequence[str]
    transactional: bool
    oldest_revision: str | None


class _Statements(list[str]):
    """A file to which Alembic writes SQL, each statement at once."""

    def write(self, text: str) -> None:
        self.append(text.strip().removesuffix(";"))

    def flush(self) -> None:
        """Do nothing."""


@cache
def read_scripts(dialect_name: str, versions: Path = VERSIONS) -> Sequence[Script]:
    """Return the migrations in a folder, oldest first, for "postgresql" or "sqlite".

    Alembic is imported only here, if there is something to migrate: importing it takes a fifth of a server's start.
    """
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see above

    directory = ScriptDirectory(versions, version_locations=[versions])
    return [_read(script, dialect_name) for script in list(directory.walk_revisions())[::-1]]


def _read(script: "AlembicScript", dialect_name: str) -> Script:
    from alembic.migration import MigrationContext  # noqa: PLC0415 - see above
    from alembic.operations import Operations  # noqa: PLC0415 - see above

    statements = _Statements()
    context = MigrationContext.configure(
        dialect_name=dialect_name,
        # With the default of PostgreSQL, percent signs would be doubled.
        dialect_opts={"paramstyle": "named"},
        opts={"as_sql": True, "output_buffer": statements},
    )
    with Operations.context(context):
        script.module.upgrade()
    return Script(
        script.revision,
        (script.doc or "").splitlines()[0],
        statements,
        getattr(script.module, "transactional", True),
        getattr(script.module, "oldest_revision", None),
    )
