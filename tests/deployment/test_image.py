"""Runs the steps of the Dockerfile without a container engine, and checks the resulting files."""

import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cart_grpc.cli.command_groups import GROUPS, Group
from tests.deployment.versions import project
from tests.ports import free_port
from tests.postgres import copy_readable, process_owner, shared_temporary_folder

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = {"cart_grpc": "cart_grpc", "cartgrpc": "generated/cartgrpc"}
IMAGE_PATHS = ("/src", "/wheels", "/opt/cart-grpc", "/opt/sbom", "/var/lib/cart-grpc")

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Stage:
    instructions: tuple[tuple[str, str], ...]

    def all(self, word: str) -> list[str]:
        return [rest for found, rest in self.instructions if found == word]

    def only(self, word: str) -> str:
        (rest,) = self.all(word)
        return rest


@functools.cache
def read_dockerfile() -> tuple[Stage, Stage]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    instructions: list[tuple[str, str]] = []
    for line in filter(None, joined.splitlines()):
        word, rest = line.split(maxsplit=1)
        instructions.append((word, rest))
    second = max(index for index, (word, _) in enumerate(instructions) if word == "FROM")
    return Stage(tuple(instructions[:second])), Stage(tuple(instructions[second:]))


@dataclass(frozen=True)
class Image:
    folder: Path
    environment: dict[str, str]

    def here(self, text: str) -> str:
        """Replace the image's absolute paths in `text` by paths below `folder`."""
        paths = "|".join(map(re.escape, IMAGE_PATHS))
        return re.sub(rf"(?<![\w.-])({paths})(?![\w-])", lambda match: f"{self.folder}{match[1]}", text)

    @property
    def wheel(self) -> Path:
        (wheel,) = (self.folder / "wheels").glob("*.whl")
        return wheel

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run an installed command as a user other than root, outside the project's folder."""
        return subprocess.run(
            [self.folder / "opt/cart-grpc/bin" / command[0], *command[1:]],
            cwd="/",
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **process_owner(),
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start an installed command. If we may, give it a root file system that it can only read, but for its data."""
        program: tuple[str | Path, ...] = (self.folder / "opt/cart-grpc/bin" / command[0], *command[1:])
        if not can_mount():
            return subprocess.Popen(program, cwd="/", env=self.environment, **process_owner())
        owner = process_owner()
        drop = ("setpriv", f"--reuid={owner['user']}", f"--regid={owner['group']}", "--clear-groups", "--no-new-privs")
        script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
        apart = ("unshare", "--mount", "sh", "-ec", script, self.folder / "var/lib/cart-grpc", *drop)
        return subprocess.Popen([*apart, *program], cwd="/", env=self.environment)


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    folder = Path(tempfile.mkdtemp(prefix="image-", dir=shared_temporary_folder()))
    try:
        folder.chmod(0o755)
        python, environment = provide_python(folder)
        (folder / "bin").mkdir()
        (folder / "bin/python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
        (folder / "bin/python").chmod(0o755)
        image = Image(folder, environment)
        build(image)
        yield image
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build(image: Image) -> None:
    stage, _ = read_dockerfile()
    source = image.folder / "src"
    source.mkdir()
    for arguments in stage.all("COPY"):
        *names, target = arguments.split()
        for name in names:
            to = source / target / (name if target.endswith("/") else "")
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, to)
    # Keep the machine's environment: it configures the package index and the cache.
    environment = os.environ | image.environment | {"PATH": f"{image.folder}/bin{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(provide_pip(image.folder))
    for command in stage.all("RUN"):
        finished = subprocess.run(
            ["/bin/sh", "-ec", image.here(command)],
            cwd=source,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout


def provide_pip(folder: Path) -> Path:
    """Return a folder with pip and nothing else, which the Python of the build stage has and a copied one lacks."""
    spec = importlib.util.find_spec("pip")
    assert spec
    assert spec.origin
    (folder / "pip").mkdir()
    (folder / "pip/pip").symlink_to(Path(spec.origin).parent)
    return folder / "pip"


def provide_python(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the tests' interpreter, or a copy if the other user cannot read it, and the environment to run it."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    environment = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        subprocess.run(
            [base / "bin" / name, "-c", "import json"], cwd="/", env=environment, check=True, **process_owner()
        )
    except (PermissionError, subprocess.CalledProcessError):
        copy = folder / "python"
        left_out = ("__pycache__", "site-packages", "test", "idlelib", "tkinter", "config-*")
        copy_readable(base / "lib" / name, copy / "lib" / name, leave_out=left_out)
        (copy / "bin").mkdir()
        shutil.copy((base / "bin" / name).resolve(), copy / "bin" / name)
        for library in (base / "lib").glob("libpython*"):
            shutil.copy(library, copy / "lib")
        for part in (copy, copy / "bin", copy / "lib"):
            part.chmod(0o755)
        return copy / "bin" / name, environment | {"LD_LIBRARY_PATH": str(copy / "lib")}
    return base / "bin" / name, environment


def test_the_wheel_holds_both_packages_completely_and_nothing_else(image: Image) -> None:
    expected = {
        f"{name}/{file.relative_to(image.folder / 'src' / path)}"
        for name, path in PACKAGES.items()
        for file in (image.folder / "src" / path).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(image.wheel) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {f"{name}/py.typed" for name in PACKAGES} <= found
    assert any(name.startswith("cart_grpc/store/migrations/versions/") for name in found)


def test_the_installed_packages_import_from_any_folder(image: Image) -> None:
    code = """
import cart_grpc, cartgrpc, cartgrpc.v1.cart_service_pb2_grpc
import cartgrpc.reservation.v1.reservation_pb2_grpc, cartgrpc.simulator.v1.simulator_pb2_grpc
print(cartgrpc.__path__[0], cart_grpc.__path__[0], sep="\\n")
"""
    finished = image.run("python", "-W", "error", "-c", code)
    assert finished.returncode == 0, finished.stderr
    installed = image.folder / "opt/cart-grpc"
    assert all(Path(path).is_relative_to(installed) for path in finished.stdout.split())


@pytest.fixture(scope="session")
def bare(image: Image) -> Image:
    """An environment with the wheel and no extra."""
    place = replace(image, folder=image.folder / "bare")
    target = place.folder / "opt/cart-grpc"
    subprocess.run([image.folder / "bin/python", "-m", "venv", "--without-pip", target], check=True)
    pip = (sys.executable, "-m", "pip", "--python", target, "install", "--quiet", "--no-compile")
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", image.wheel], check=True)
    return place


def test_the_client_needs_few_packages(bare: Image) -> None:
    code = """
import sys
from importlib.metadata import distributions
from cart_grpc.client import CartClient, SyncCartClient, money
CartClient("localhost:50051")
print(*sorted(one.name for one in distributions()))
print({"sqlalchemy", "pydantic", "aiohttp", "rich"} & set(sys.modules))
"""
    finished = bare.run("python", "-W", "error", "-c", code)
    assert finished.returncode == 0, finished.stderr
    packages, imported = finished.stdout.splitlines()
    needed = "cart-grpc googleapis-common-protos grpcio iso4217 protobuf typing_extensions"
    assert set(packages.split()) <= set(needed.split())
    assert imported == "set()"
    size = sum(file.stat().st_size for file in (bare.folder / "opt/cart-grpc/lib").rglob("*") if file.is_file())
    assert size < 40_000_000


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.extra)
def test_a_command_whose_extra_is_missing_says_how_to_install_it(group: Group, bare: Image) -> None:
    for arguments in ((next(iter(group.descriptions)), "--help"), (list(group.descriptions)[-1], "list", "--json")):
        finished = bare.run("cart-grpc", *arguments)
        assert finished.returncode == 2
        assert finished.stdout == ""
        assert finished.stderr == f"cart-grpc: {arguments[0]} is not installed; install it with: {group.installation}\n"


def test_the_help_and_the_version_need_no_extra(bare: Image) -> None:
    assert bare.run("cart-grpc", "--version").stdout.startswith("cart-grpc 0.")
    shown = bare.run("cart-grpc", "--help").stdout
    for group in GROUPS:
        assert all(name in shown for name in group.descriptions)
        assert f"cart-grpc[{group.extra}]" in shown


def test_the_command_runs_as_another_user_in_any_folder(image: Image) -> None:
    finished = image.run("cart-grpc", "--help")
    assert finished.returncode == 0, finished.stderr
    for command in ("serve", "reconcile", "migrate", "simulate", "dev", "config", "health"):
        assert command in finished.stdout


@functools.cache
def can_mount() -> bool:
    """Whether this user may change mounts for one process."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


def installed_packages(image: Image) -> dict[str, str]:
    code = "from importlib.metadata import distributions\nfor one in distributions(): print(one.name, one.version)"
    finished = image.run("python", "-c", code)
    assert finished.returncode == 0, finished.stderr
    return {normal(name): version for name, version in map(str.split, finished.stdout.splitlines())}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_image_installs_the_pinned_versions_and_nothing_that_builds_or_installs(image: Image) -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==([^ \n]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    installed = installed_packages(image)
    installed.pop("cart-grpc")
    assert installed.items() <= {normal(name): version for name, version in pinned.items()}.items()
    assert not {"pip", "setuptools", "wheel", "hatchling", "pytest", "cyclonedx-bom"} & installed.keys()
    uninstall, *_ = read_dockerfile()[1].all("RUN")
    assert uninstall.startswith("python -m pip uninstall --yes pip ")


def test_the_images_sbom_lists_exactly_the_installed_packages(image: Image) -> None:
    bill = json.loads((image.folder / "opt/cart-grpc/share/sbom.cdx.json").read_text())
    component = bill["metadata"]["component"]
    listed = {normal(one["name"]): one["version"] for one in (component, *bill["components"])}
    assert bill["bomFormat"] == "CycloneDX"
    assert listed == installed_packages(image)
    assert all(one["purl"].startswith("pkg:pypi/") for one in bill["components"])


def test_the_labels_of_the_image_are_those_of_the_project() -> None:
    metadata = project()
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', read_dockerfile()[1].only("LABEL")))
    assert labels == {
        "title": metadata["name"],
        "description": metadata["description"],
        "version": metadata["version"],
        "licenses": metadata["license"],
    }


def test_the_image_keeps_its_database_on_a_volume_that_its_user_owns() -> None:
    _, stage = read_dockerfile()
    (volume,) = stage.only("VOLUME").split()
    assert f":///{volume}/" in stage.only("ENV")
    user, group = map(int, stage.only("USER").split(":"))
    assert user == group != 0
    *_, prepare = stage.all("RUN")
    assert f"--uid {user}" in prepare
    assert prepare.endswith(volume)


def test_the_image_starts_becomes_healthy_and_stops(image: Image) -> None:
    _, stage = read_dockerfile()
    start = json.loads(stage.only("CMD"))
    check = json.loads(stage.only("HEALTHCHECK").split("CMD ")[1])
    data = image.folder / "var/lib/cart-grpc"
    data.mkdir(parents=True)
    shutil.chown(data, process_owner().get("user", os.geteuid()))
    address = f"127.0.0.1:{free_port()}"
    settings = dict(re.findall(r"(CART_\w+)=(\S+)", image.here(stage.only("ENV"))))
    # No Reservation API listens on port 1. The service is healthy without one.
    settings |= {"CART_LISTEN": address, "CART_RESERVATION_URL": "grpc://127.0.0.1:1", "CART_LAME_DUCK": "0"}
    there = replace(image, environment=image.environment | settings)
    migrated = there.run("cart-grpc", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    assert there.run(*check).returncode != 0
    with there.start(*start) as server:
        deadline = time.monotonic() + 60
        try:
            while (checked := there.run(*check)).returncode != 0:
                assert server.poll() is None
                assert time.monotonic() < deadline, checked.stderr
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0
        finally:
            server.kill()
    assert any(data.iterdir())


def test_the_image_as_it_is_does_not_start_and_names_both_ways_out(image: Image) -> None:
    _, stage = read_dockerfile()
    settings = dict(re.findall(r"(CART_\w+)=(\S+)", image.here(stage.only("ENV"))))
    there = replace(image, environment=image.environment | settings)
    ended = there.run(*json.loads(stage.only("CMD")))
    assert ended.returncode == 2
    assert ended.stderr.startswith("cart-grpc: CART_LISTEN: 0.0.0.0:50051 is beyond loopback")
    assert "CART_TOKEN_KEYS" in ended.stderr
    assert "CART_ALLOW_ANYONE_TO_BE_ANY_USER=true" in ended.stderr


def test_the_project_supports_the_python_of_the_image() -> None:
    metadata = project()
    for stage in read_dockerfile():
        version = stage.only("FROM").removeprefix("python:").split("-")[0]
        assert f"Programming Language :: Python :: {version}" in metadata["classifiers"]


def test_dockerignore_lets_through_exactly_the_files_that_the_image_copies() -> None:
    stage, _ = read_dockerfile()
    copied = {name for arguments in stage.all("COPY") for name in arguments.split()[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
