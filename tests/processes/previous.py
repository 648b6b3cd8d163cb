"""The previous release, from the history of this repository, in the environment of this one."""

import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from tests.processes.harness import Programs, running_programs

# The last commit before schemas recorded which releases may use them. It has schema 0001.
PREVIOUS = "2eab6ef8"
_REPOSITORY = Path(__file__).parents[2]


@contextmanager
def running_previous_programs(folder: Path) -> Iterator[Programs]:
    """Yield the programs of the previous release, as `running_programs`. Fails if the history lacks that release."""
    command = ["git", "-C", str(_REPOSITORY), "archive", PREVIOUS, "cart_grpc", "generated"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        pytest.fail(f"the history lacks {PREVIOUS}, run `git fetch --unshallow`: {archive.stderr.decode()}")
    source = folder / "previous"
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(source, filter="data")
    (folder / "of-previous").mkdir()
    with running_programs(folder / "of-previous") as programs:
        programs.preloaded = False
        programs.environment["PYTHONPATH"] = f"{source}:{source / 'generated'}"
        yield programs
