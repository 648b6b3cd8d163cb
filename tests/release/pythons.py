"""The supported Python versions, and their interpreters on this machine."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.deployment.versions import project

_CLASSIFIER = "Programming Language :: Python :: "


def supported() -> list[str]:
    """Return the versions that the metadata promises, such as "3.12"."""
    return [each.removeprefix(_CLASSIFIER) for each in project()["classifiers"] if each.startswith(f"{_CLASSIFIER}3.")]


@cache
def find_interpreter(version: str) -> Path | None:
    """Return an interpreter of `version` that runs."""
    return next(filter(_runs, _candidates(version)), None)


def _candidates(version: str) -> Iterator[Path]:
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    # pyenv's commands fail unless the version was chosen.
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)


def _runs(python: Path) -> bool:
    return subprocess.run([python, "-c", "import ssl, sqlite3"], capture_output=True, check=False).returncode == 0
