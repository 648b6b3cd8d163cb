"""The generated clients in Go and Java: the programs in the documents, against a server that loses its first reply."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.shop import Shop, meanwhile
from tests.sdk.conftest import ROOT

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(240)]
BUF = Path(sys.executable).parent / "buf"
GO_LIBRARIES = Path("/usr/share/gocode")
JARS = Path("/usr/share/java")
JAR_NAMES = [
    *("grpc-api", "grpc-context", "grpc-core", "grpc-netty", "grpc-protobuf", "grpc-protobuf-lite", "grpc-stub"),
    *("protobuf", "guava", "failureaccess", "gson", "perfmark-api", "jsr305", "geronimo-annotation-1.3-spec"),
]
# Compile with the quick compiler only: the processes live for seconds.
JAVA_OPTIONS = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]


def generate(language: str, folder: Path) -> None:
    """Generate the client as its document says."""
    shutil.copy(ROOT / "sdk" / language / "buf.gen.yaml", folder)
    shutil.copy(ROOT / "generated" / "cartgrpc" / "descriptors.binpb", folder)
    shutil.copy(ROOT / "cart_grpc" / "client" / "service_config.json", folder)
    call([str(BUF), "generate"], folder)


def program(language: str, shop: Shop) -> str:
    """The program in the document, for this server."""
    document = (ROOT / "docs" / "clients" / f"{language}.md").read_text(encoding="utf-8")
    [found] = re.findall(rf"^```{language}\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    return str(found).replace("127.0.0.1:50051", shop.address)


def call(command: list[str], folder: Path, **environment: str) -> str:
    finished = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=200, env={**os.environ, **environment}
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def run_without_the_first_reply(shop: Shop, command: list[str], folder: Path, **environment: str) -> list[str]:
    """Run a program whose first call is a mutation. The server dies after the commit, and starts again."""
    shop.die_before_next_reply()
    with meanwhile(shop.start_when_dead):
        return call(command, folder, **environment).splitlines()


def test_the_program_in_go_runs(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "src" / "example.com" / "shop"
    folder.mkdir(parents=True)
    generate("go", folder)
    (folder / "main.go").write_text(program("go", shop))
    environment = {"GOPATH": f"{tmp_path}:{GO_LIBRARIES}", "GO111MODULE": "off", "GRPC_GO_RETRY": "on"}
    call(["go", "build", "-o", "shop", "."], folder, **environment)
    assert run_without_the_first_reply(shop, ["./shop"], folder, **environment) == [
        "2 STATE_RESERVED",
        "NotFound CART_NOT_FOUND",
        "users/gopher/carts/default 1",
        "settled: 1",
    ]


def test_the_program_in_java_runs(shop: Shop, tmp_path: Path) -> None:
    generate("java", tmp_path)
    (tmp_path / "Shop.java").write_text(program("java", shop))
    jars = [str(JARS / f"{name}.jar") for name in JAR_NAMES if (JARS / f"{name}.jar").is_file()]
    jars += [str(jar) for jar in JARS.glob("netty-*.jar") if "all" not in jar.name]
    path = ":".join([*jars, "classes"])
    compiler = ["javac", *(f"-J{option}" for option in JAVA_OPTIONS), "-nowarn", "-proc:none"]
    call([*compiler, "-cp", path, "-sourcepath", "gen", "-d", "classes", "Shop.java"], tmp_path)
    program_in_java = ["java", *JAVA_OPTIONS, "-cp", path, "Shop"]
    assert run_without_the_first_reply(shop, program_in_java, tmp_path) == [
        "2 STATE_RESERVED",
        "NOT_FOUND",
        "users/duke/carts/default 1",
        "settled: 1",
    ]
