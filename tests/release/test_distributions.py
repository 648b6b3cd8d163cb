"""The distributions of a release: valid, complete, reproducible, and enough by themselves on each Python."""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.deployment.manifests import ROOT
from tests.deployment.versions import project_version
from tests.processes.harness import LISTENS
from tests.release.pythons import find_interpreter, supported

BIN = Path(sys.executable).parent
# A build reads these only.
SOURCES = (
    "cart_grpc",
    "compat-protos",
    "generated",
    "protos",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    ".gitignore",
)
CALL_SECONDS = 120

pytestmark = [pytest.mark.release, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Distributions:
    """The two files that `python -m build` made."""

    folder: Path

    @property
    def wheel(self) -> Path:
        (wheel,) = self.folder.glob("*.whl")
        return wheel

    @property
    def sdist(self) -> Path:
        (sdist,) = self.folder.glob("*.tar.gz")
        return sdist

    def digests(self) -> dict[str, str]:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in self.folder.iterdir()}


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Run a program, and return its output."""
    finished = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, f"{command}: {finished.stdout}"
    return finished.stdout


def build(source: Path, target: Path, *options: str) -> Distributions:
    """Build both distributions: the sdist from `source`, and the wheel from the sdist."""
    run(BIN / "python", "-m", "build", "--installer", "uv", "--outdir", target, *options, source)
    return Distributions(target)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def test_another_copy_of_the_sources_gives_the_same_bytes(built: Distributions, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in SOURCES:
        # With other times, and without compiled files.
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(ROOT / name, copy / name)
    assert build(copy, tmp_path / "dist").digests() == built.digests()


def test_the_wheel_of_the_sources_is_the_wheel_of_the_sdist(built: Distributions, tmp_path: Path) -> None:
    assert build(ROOT, tmp_path, "--wheel").wheel.read_bytes() == built.wheel.read_bytes()


def test_the_distributions_pass_the_checks_of_the_index(built: Distributions) -> None:
    run(BIN / "twine", "check", "--strict", built.wheel, built.sdist)
    run(BIN / "check-wheel-contents", built.wheel)


def test_the_sdist_has_the_protos_and_nothing_private(built: Distributions) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    tracked = set(run("git", "ls-files", *SOURCES).split())
    assert {name for name in tracked if name.startswith("protos/")} <= names
    assert names <= tracked | {"PKG-INFO"}


def test_the_metadata_names_the_version_of_the_newest_release_notes(built: Distributions) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(wheel.read(name).decode())
    released = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert metadata["Version"] == project_version() == released[0]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == f">={supported()[0]}"


@contextlib.asynccontextmanager
async def running_dev(cart_grpc: Path, folder: Path) -> AsyncIterator[str]:
    """Run `cart-grpc dev` in an empty folder, and stop it with Ctrl-C. Yields the server's address."""
    options = ("--simulator-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--latency", "50ms")
    process = await asyncio.create_subprocess_exec(
        cart_grpc,
        "dev",
        *options,
        cwd=folder,
        env=os.environ | {"CART_LISTEN": "127.0.0.1:0", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CALL_SECONDS):
            yield await _find_address(process)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _find_address(process: asyncio.subprocess.Process) -> str:
    assert process.stdout
    async for line in process.stdout:
        if found := LISTENS.match(line.decode()):
            return found[1]
    raise AssertionError(f"the server ended with {await process.wait()}")


@pytest.mark.parametrize("version", supported())
async def test_a_clean_environment_serves_from_the_wheel_alone(
    version: str, built: Distributions, tmp_path: Path
) -> None:
    python = find_interpreter(version)
    if python is None:
        pytest.skip(f"Python {version} is not on this machine")
    environment, folder = tmp_path / "environment", tmp_path / "folder"
    folder.mkdir()
    run(BIN / "uv", "venv", "--quiet", "--python", python, environment)
    install = ("pip", "install", "--quiet", "--python", environment, "--constraint", ROOT / "constraints.txt")
    run(BIN / "uv", *install, f"{built.wheel}[cli,server,otel]")
    async with running_dev(environment / "bin/cart-grpc", folder) as address:
        add = ("cart", "add", "alice", "espresso-beans", "2", "--wait", "30s", "--address", address)
        shown = await asyncio.to_thread(run, environment / "bin/cart-grpc", *add, cwd=folder)
    assert re.search(r"^espresso-beans +2 .*RESERVED", shown, re.MULTILINE), shown
