"""The log of failures: each cause once, a reminder a minute at most, and one line at the end."""

import logging

import pytest
from sqlalchemy.exc import OperationalError

from cart_grpc.carts.refusals import DatabaseUnavailable
from cart_grpc.logs import events
from cart_grpc.store.failure_log import FailureLog
from cart_grpc.store.failures import CommitFailed, show_cause


class Log:
    """A log on a clock that the test sets, in seconds."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        self.now = 100.0
        self.failures = FailureLog(
            events.WRITES_FAILING,
            events.WRITES_RECOVERED,
            "writes fail",
            "writes work again",
            clock=lambda: self.now,
        )
        self._caplog = caplog

    def fail(self, error: Exception) -> None:
        with pytest.raises(DatabaseUnavailable), self.failures.translated():
            raise error

    def work(self) -> None:
        with self.failures.translated():
            pass

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


def test_a_failure_is_logged_once_with_its_cause_and_its_end_once_with_its_duration(log: Log) -> None:
    log.work()
    for _ in range(50):
        log.fail(ConnectionRefusedError("refused"))
        log.now += 1
    assert log.failures.is_failing
    log.work()
    log.work()
    assert not log.failures.is_failing
    assert log.lines == ["writes fail: refused", "writes work again after 50.0 s and 50 failures"]
    log.fail(ConnectionRefusedError("refused"))
    assert log.lines[2:] == ["writes fail: refused"]


def test_each_other_cause_of_one_outage_is_logged_once(log: Log) -> None:
    for _ in range(10):
        log.fail(ConnectionRefusedError("refused"))
        log.fail(ConnectionResetError("reset"))
    assert log.lines == ["writes fail: refused", "writes fail: reset"]


def test_hours_of_failures_are_a_line_a_minute(log: Log) -> None:
    for second in range(7_200):
        log.now = 100.0 + second
        log.fail(ConnectionRefusedError("refused"))
    assert len(log.lines) == 120
    assert log.lines[1] == "writes fail for 60 s now, 61 times: refused"


def test_successes_between_failures_end_nothing(log: Log) -> None:
    for _ in range(100):
        log.fail(ConnectionRefusedError("refused"))
        log.now += 0.5
        log.work()
    assert log.lines == ["writes fail: refused"]
    log.now += 0.5
    log.work()
    assert log.lines[1:] == ["writes work again after 50.5 s and 100 failures"]


def test_an_error_that_the_database_did_not_cause_is_neither_counted_nor_changed(log: Log) -> None:
    with pytest.raises(KeyError), log.failures.translated():
        raise KeyError
    assert log.lines == []


def test_a_refusal_keeps_its_cause_and_is_not_its_own_cause(log: Log) -> None:
    refusal = DatabaseUnavailable()
    with pytest.raises(DatabaseUnavailable) as raised, log.failures.translated():
        raise refusal
    assert raised.value is refusal
    assert refusal.__cause__ is None


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError("first\nsecond"), "first"),
        (OSError("\x1b[31mred\u202e\u200b"), "?[31mred??"),
        (OSError("cannot reach postgresql://u:p@ss@db/d"), "cannot reach postgresql://db/d"),
        (OperationalError("SELECT $1", ("a caller's text",), OSError("gone")), "gone"),
        (OSError("x" * 1000), "x" * 300),
        (TimeoutError(), "no answer in time"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
    ids=repr,
)
def test_a_cause_is_one_clean_line_without_secrets_and_data(error: Exception, shown: str) -> None:
    assert show_cause(error) == shown
    refusal, failed = DatabaseUnavailable(), CommitFailed(None)
    failed.__cause__, refusal.__cause__ = error, failed
    assert show_cause(refusal) == shown
