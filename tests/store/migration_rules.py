"""The rules for migrations: the previous release goes on serving while one runs, and afterwards."""

import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from cart_grpc.store.migration_scripts import Script, read_scripts
from cart_grpc.store.revisions import FIRST, VERSIONS
from cart_grpc.store.schema import VERSION_TABLE

# The oldest PostgreSQL that the tests know.
_POSTGRESQL = "14"
# Squawk's rules about style, and about what `migration_run` does for every migration.
_NOT_OURS = (
    "prefer-robust-stmts", "prefer-text-field", "prefer-bigint-over-int", "prefer-bigint-over-smallint",
    "require-lock-timeout", "require-statement-timeout", "require-timeout-settings", "transaction-nesting",
)  # fmt: skip
# What the previous release may still use. A migration that contracts may take it away.
_CONTRACTS = {"ban-drop-column", "ban-drop-table", "ban-drop-constraint", "ban-drop-not-null"}
# All others are refused: an UPDATE of a whole table, LOCK, CLUSTER, or an INSERT … SELECT that copies a table.
_ALLOWED = re.compile(
    r"CREATE (TABLE|(OR REPLACE )?FUNCTION|TRIGGER|(UNIQUE )?INDEX)\b|ALTER TABLE\b|DROP (TRIGGER|FUNCTION) IF EXISTS\b"
    rf"|UPDATE {VERSION_TABLE} "
)
_DROPS = re.compile(r"DROP (TABLE|INDEX)\b")
_TAKES_AWAY = re.compile(r"\b(DROP (TABLE|INDEX|COLUMN|CONSTRAINT)|RENAME)\b")
_CONCURRENT = re.compile(r"(CREATE|DROP) (UNIQUE )?INDEX CONCURRENTLY\b")
_SQUAWK = Path(sysconfig.get_path("scripts")) / "squawk"


def find_violations(revision: str, versions: Path = VERSIONS) -> Iterator[str]:
    """Yield the rules that a migration breaks, on each database."""
    for dialect in ("postgresql", "sqlite"):
        script = find_script(revision, dialect, versions)
        oldest, contracts = script.oldest_revision, script.oldest_revision is not None
        if oldest and not FIRST < oldest < revision:
            yield f"oldest_revision {oldest} is not between the first revision and this one"
        statements = in_lines(script)
        if contracts and not any(statement.startswith(f"UPDATE {VERSION_TABLE} ") for statement in statements):
            yield f"{dialect}: it contracts, but does not call refuse_releases_before"
        for statement in statements:
            rule = _find_forbidden(statement, dialect, contracts=contracts, transactional=script.transactional)
            if rule:
                yield f"{dialect}: {rule}: {statement}"
        if dialect == "postgresql":
            yield from (
                f"{dialect}: {rule}: {statement}"
                for rule, statement in _squawk(statements)
                if not (contracts and rule in _CONTRACTS)
            )


def _find_forbidden(statement: str, dialect: str, *, contracts: bool, transactional: bool) -> str | None:
    if not _ALLOWED.match(statement) and not (contracts and _DROPS.match(statement)):
        return "not-allowed"
    if not contracts and _TAKES_AWAY.search(statement):
        return "only-in-a-contraction"
    if dialect == "postgresql" and bool(_CONCURRENT.match(statement)) == transactional:
        return "concurrently-and-transactional"
    return None


def find_script(revision: str, dialect: str, versions: Path = VERSIONS) -> Script:
    """Return a migration of a folder."""
    return next(script for script in read_scripts(dialect, versions) if script.revision == revision)


def in_lines(script: Script) -> list[str]:
    """Return the SQL of a migration, each statement in one line."""
    return [" ".join(statement.split()) for statement in script.statements]


def _squawk(statements: Sequence[str]) -> list[tuple[str, str]]:
    """Return the rules of Squawk, the linter for PostgreSQL's migrations, that are broken, and by which statement."""
    command = [str(_SQUAWK), "--reporter", "json", "--pg-version", _POSTGRESQL, "--exclude", ",".join(_NOT_OURS)]
    script = "".join(f"{statement};\n" for statement in statements)
    finished = subprocess.run(
        [*command, "--stdin-filepath", "migration.sql"], input=script, capture_output=True, text=True, check=False
    )
    return [(found["rule_name"], statements[found["line"]]) for found in json.loads(finished.stdout)]
