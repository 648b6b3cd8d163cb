"""A real server answers random requests: no INTERNAL, no UNKNOWN, no hang, no growth, no error in its log."""

from pathlib import Path

import pytest

from tests.fuzz.guarded_wire import GuardedSiege
from tests.fuzz.wire import Siege
from tests.processes.conftest import programs
from tests.processes.harness import Programs

__all__ = ["programs"]
# Before memory is measured, and after.
CALLS = (200, 500)
pytestmark = pytest.mark.timeout(120)


async def test_a_server_answers_random_requests_and_keeps_its_memory(programs: Programs, database_url: str) -> None:
    siege = Siege(programs, database_url)
    await siege.run(*CALLS, seed=1)
    assert siege.growth[-1] < 64 << 20
    # The requests are neither all valid nor all invalid.
    assert siege.ended["OK"] > 70
    assert siege.ended["INVALID_ARGUMENT"] > 70
    assert {"NOT_FOUND", "ABORTED", "FAILED_PRECONDITION", "UNIMPLEMENTED"} <= siege.ended.keys()


async def test_a_server_with_identities_answers_random_requests_and_shows_no_user_what_is_anothers(
    programs: Programs, tmp_path: Path
) -> None:
    siege = GuardedSiege(programs, f"sqlite:///{tmp_path}/cart.db", tmp_path)
    await siege.run(*CALLS, seed=1)
    assert siege.growth[-1] < 64 << 20
    assert {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND"} <= siege.ended.keys()
