"""Every process logs once when an operator pauses and resumes the calls, also at another process."""

import pytest

from cart_grpc.background.pause_watcher import PauseWatcher
from cart_grpc.store.read.operator_reads import PauseSnapshot


async def test_a_pause_and_its_end_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    pause: PauseSnapshot | None = None

    async def find_pause() -> PauseSnapshot | None:
        return pause

    watcher = PauseWatcher(find_pause)
    with caplog.at_level("WARNING"):
        for pause in (None, PauseSnapshot("ticket 17", 1), None):  # noqa: B007 - find_pause returns it
            for _ in range(3):
                await watcher.run_once()
    assert [(record.event, record.fields.get("reason")) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("reservations_paused", "ticket 17"),
        ("reservations_resumed", None),
    ]
