"""The server, and the npm package in a project of its own."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.shop import KILLABLE, Shop, running_shop
from tests.documents.pages import fences

ROOT = Path(__file__).parents[2]
TYPESCRIPT = ROOT / "sdk" / "typescript"


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop for the whole run; each test has its own user."""
    with running_shop(tmp_path_factory.mktemp("shop"), KILLABLE, shutdown_grace="0.2", reservation_lease="1") as shop:
        yield shop


def find_package() -> Path:
    """Return the npm package that make has built."""
    [package] = (ROOT / "build" / "sdk").glob("cart-grpc-*.tgz")
    return package


@pytest.fixture(scope="session")
def node_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty project that has installed the package."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
    command = ["npm", "install", "--prefer-offline", "--no-audit", "--no-fund", "--silent", str(find_package())]
    subprocess.run(command, cwd=folder, check=True, timeout=55)
    return folder


def compile_typescript(folder: Path, *files: str) -> None:
    """Compile programs that use the package in this project, as the document says. Fails if their types are wrong."""
    commands = [command for fence in fences("docs/clients/typescript.md", "console") for command in fence.commands]
    [options] = re.findall(r"^npx tsc (.+) shop\.ts$", "\n".join(commands), re.MULTILINE)
    # The package's own compiler, instead of another one in the project.
    modules = TYPESCRIPT / "node_modules"
    compiler = [str(modules / ".bin" / "tsc"), *shlex.split(options), "--typeRoots", str(modules / "@types")]
    finished = subprocess.run([*compiler, *files], cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout


def run(command: list[str], folder: Path) -> str:
    """Run a program that must succeed, and return its output."""
    path = shutil.which(command[0])
    assert path, f"{command[0]} is not installed"
    # A shell finds the Python of the tests.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    finished = subprocess.run(
        [path, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=55, check=False, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout
