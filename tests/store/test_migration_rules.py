"""Every migration keeps the rules under which the previous release goes on serving. The rules find bad examples."""

from pathlib import Path

import pytest

from cart_grpc.store.revisions import LATEST, VERSIONS, known_revisions
from tests.store.migration_rules import find_script, find_violations

ADD_COLUMN = 'op.add_column("carts", sa.Column("note", sa.Text(){}))'


def write_migration(folder: Path, body: str, head: str = "") -> None:
    """Write all migrations to a folder, and one more, which follows the newest one."""
    for file in VERSIONS.glob("[0-9]*.py"):
        (folder / file.name).write_text(file.read_text())
    (folder / "9999_example.py").write_text(
        '"""An example"""\n'
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "from cart_grpc.store.migrations.operations import build_index, refuse_releases_before\n"
        f'revision, down_revision = "9999", "{LATEST}"\n{head}\n\ndef upgrade():\n    {body}\n'
    )


# The first migration makes an empty database, which nobody uses.
@pytest.mark.parametrize("revision", known_revisions()[1:])
def test_the_previous_release_can_serve_while_a_migration_runs_and_afterwards(revision: str) -> None:
    assert find_script(revision, "postgresql").statements
    assert list(find_violations(revision)) == []


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (ADD_COLUMN.format(""), ""),
        (ADD_COLUMN.format(', server_default="", nullable=False'), ""),
        ('op.create_table("notes", sa.Column("a", sa.Text())); op.create_table("more", sa.Column("a", sa.Text()))', ""),
        ('op.execute("ALTER TABLE carts ADD CONSTRAINT a CHECK (revision > 0) NOT VALID")', ""),
        ('op.execute("ALTER TABLE carts VALIDATE CONSTRAINT carts_state")', ""),
        ('build_index("a", "carts", ["uid"], "state = 1")', "transactional = False"),
        (f'refuse_releases_before("{LATEST}"); op.drop_column("carts", "uid")', f'oldest_revision = "{LATEST}"'),
    ],
)
def test_a_migration_that_keeps_the_rules_is_accepted(tmp_path: Path, body: str, head: str) -> None:
    write_migration(tmp_path, body, head)
    assert list(find_violations("9999", tmp_path)) == []


@pytest.mark.parametrize(
    ("body", "head", "rule"),
    [
        ('op.drop_column("carts", "uid")', "", "only-in-a-contraction"),
        ('op.drop_table("pauses")', "", "not-allowed"),
        ('op.alter_column("carts", "uid", new_column_name="id")', "", "only-in-a-contraction"),
        ('op.rename_table("carts", "baskets")', "", "only-in-a-contraction"),
        ('op.alter_column("carts", "labels", type_=sa.JSON())', "", "changing-column-type"),
        ('op.alter_column("carts", "ttl_us", nullable=False)', "", "adding-not-nullable-field"),
        (ADD_COLUMN.format(", nullable=False"), "", "adding-required-field"),
        (ADD_COLUMN.format(', server_default=sa.text("gen_random_uuid()")'), "", "adding-field-with-default"),
        (ADD_COLUMN.format(', sa.Computed("uid")'), "", "adding-field-with-default"),
        ('op.create_index("a", "carts", ["uid"])', "", "require-concurrent-index-creation"),
        ('op.create_index("a", "carts", ["uid"], postgresql_concurrently=True)', "", "concurrently-and-transactional"),
        (ADD_COLUMN.format(""), "transactional = False", "concurrently-and-transactional"),
        ('op.execute("ALTER TABLE carts ADD CONSTRAINT a CHECK (revision > 0)")', "", "constraint-missing-not-valid"),
        ('op.execute("ALTER TABLE carts ADD CONSTRAINT a UNIQUE (uid)")', "", "disallowed-unique-constraint"),
        ('op.execute("ALTER TABLE carts DROP CONSTRAINT carts_state")', "", "only-in-a-contraction"),
        ('op.execute("UPDATE carts SET labels = \'\'")', "", "not-allowed"),
        ('op.execute("INSERT INTO pauses SELECT * FROM pauses")', "", "not-allowed"),
        ('op.execute("LOCK TABLE carts")', "", "not-allowed"),
        ('op.drop_column("carts", "uid")', f'oldest_revision = "{LATEST}"', "does not call refuse_releases_before"),
        ('refuse_releases_before("9999")', 'oldest_revision = "9999"', "is not between"),
        (
            f'refuse_releases_before("{LATEST}"); op.alter_column("carts", "labels", type_=sa.JSON())',
            f'oldest_revision = "{LATEST}"',
            "changing-column-type",
        ),
    ],
)  # fmt: skip
def test_a_migration_that_breaks_a_rule_is_found(tmp_path: Path, body: str, head: str, rule: str) -> None:
    write_migration(tmp_path, body, head)
    violations = list(find_violations("9999", tmp_path))
    assert any(rule in violation for violation in violations), violations
