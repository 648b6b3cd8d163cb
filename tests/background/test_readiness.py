"""Readiness: published after every ping, and damage of the database is logged once."""

import logging
from contextlib import suppress

import pytest

from cart_grpc.background.readiness import ReadinessWatcher
from cart_grpc.carts.refusals import DatabaseDamaged, DatabaseUnavailable


class Database:
    """A database whose pings end as `failure` says, and the readiness that was published last."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.ready: bool | None = None
        self.watcher = ReadinessWatcher(self.ping, [self.set_ready], lambda: ["writes fail"])

    async def ping(self) -> None:
        if self.failure:
            raise self.failure

    async def set_ready(self, *, ready: bool) -> None:
        self.ready = ready


async def test_a_server_is_ready_while_the_database_answers() -> None:
    database = Database()
    await database.watcher.run_once()
    assert database.ready is True


@pytest.mark.parametrize("failure", [DatabaseUnavailable(), DatabaseDamaged(), RuntimeError("a bug")])
async def test_a_server_is_not_ready_after_a_failed_ping_and_ready_again_after_the_next_good_one(
    failure: Exception,
) -> None:
    database = Database()
    database.failure = failure
    with pytest.raises(type(failure)):
        await database.watcher.run_once()
    assert database.ready is False
    database.failure = None
    await database.watcher.run_once()
    assert database.ready is True


async def test_damage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    database = Database()
    database.failure = DatabaseDamaged()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(DatabaseDamaged):
                await database.watcher.run_once()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["the database is damaged"]


async def test_each_change_of_readiness_is_logged_once_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    database = Database()
    with caplog.at_level(logging.INFO):
        for failure in (None, None, DatabaseUnavailable(), DatabaseUnavailable(), None, None):
            database.failure = failure
            with suppress(DatabaseUnavailable):
                await database.watcher.run_once()
    ready, not_ready, again = caplog.records
    assert [record.event for record in (ready, not_ready, again)] == ["ready", "not_ready", "ready"]  # type: ignore[attr-defined]
    assert not_ready.getMessage() == "not ready: the database is not available; nothing was changed"
    assert not_ready.fields == {"failing": "writes fail"}  # type: ignore[attr-defined]
