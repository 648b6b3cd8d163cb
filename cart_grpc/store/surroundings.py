"""The properties of a database that no session can change: they are checked when a process starts."""

from typing import Final

from sqlalchemy import Connection

from cart_grpc.store.failures import Unsuitable
from cart_grpc.store.shards import has_citus

_ENCODINGS = {"postgresql": ("SHOW server_encoding", "UTF8"), "sqlite": ("PRAGMA encoding", "UTF-8")}
# A node that does not answer has no result.
_RISKS_OF_NODES: Final = """
    SELECT result || ' on ' || nodename || ':' || nodeport FROM run_command_on_workers($$
        SELECT string_agg(name || '=off', ' and ' ORDER BY name) FROM pg_settings
        WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'
    $$) WHERE success AND result <> '' ORDER BY nodename, nodeport
"""


def check_encoding(connection: Connection) -> None:
    """Raise Unsuitable if the database cannot store every text that a caller may send."""
    query, wanted = _ENCODINGS[connection.dialect.name]
    found = connection.exec_driver_sql(query).scalar_one()
    if found != wanted:
        raise Unsuitable(f"its encoding is {found}; create a database with the encoding {wanted}")


def find_risks(connection: Connection) -> list[str]:
    """Return the settings of the server because of which a power failure can lose acknowledged changes.

    With Citus, also those of the nodes that have the shards: their sessions are not ours, so they keep their settings.
    """
    if connection.dialect.name != "postgresql":
        return []
    names = "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name"
    risks = [f"{name}=off" for name in connection.exec_driver_sql(names).scalars()]
    if has_citus(connection):
        risks += connection.exec_driver_sql(_RISKS_OF_NODES).scalars()
    return risks
