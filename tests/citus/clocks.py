"""A clock of a node that a test sets, in one database: functions of its own stand before PostgreSQL's."""

from tests.citus.cluster import Database, Node

# Citus plans for the coordinator, and sends `clock_timestamp()` to the node, whose search path finds the first one.
_REPLACE = """
    SET citus.enable_ddl_propagation = off;
    CREATE SCHEMA clocks;
    CREATE TABLE clocks.ahead AS SELECT interval '0' AS by;
    CREATE FUNCTION clocks.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
    AS 'SELECT pg_catalog.clock_timestamp() + by FROM clocks.ahead';
    DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = clocks, pg_catalog, public', current_database());
    END $$
"""


class NodeClock:
    """The clock of one node, for the sessions of a database that begin after `replace`."""

    def __init__(self, database: Database, node: Node) -> None:
        self._database = database
        self._node = node

    async def replace(self) -> None:
        """Put the clock in the place of PostgreSQL's."""
        await self._database.run(self._node, _REPLACE)

    async def set_ahead(self, seconds: float) -> None:
        """Set it `seconds` ahead of PostgreSQL's."""
        await self._database.fetch(
            self._node, "UPDATE clocks.ahead SET by = $1::float8 * interval '1 second'", float(seconds)
        )
