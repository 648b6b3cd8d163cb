"""The npm package, installed into an empty project, against the server."""

import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import grpc
import pytest

from tests.client.scripted import added, refusal, scripted_server
from tests.client.shop import Shop
from tests.sdk.conftest import ROOT, TYPESCRIPT, compile_typescript, find_package, run

pytestmark = [pytest.mark.sdk]
PROGRAM = re.compile(r"^```typescript\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = PROGRAM.findall((ROOT / "docs" / "clients" / "typescript.md").read_text(encoding="utf-8"))
OUTPUTS = [
    "2 RESERVED\n",
    r"InvalidArgument INVALID_FIELD\nitem\.sku .+\nitem\.quantity .+\n",
    "true\n",
    "users/carol/carts/default 1\n",
    r"(\d+n true\n)*\d+n false\n",
]


@pytest.fixture(scope="session")
def programs(node_project: Path, shop: Shop) -> Path:
    """The programs in the document, and those of the tests, compiled."""
    for index, program in enumerate(PROGRAMS):
        (node_project / f"document{index}.ts").write_text(program.replace("127.0.0.1:50051", shop.address))
    for name in ("watch.ts", "retries.ts"):
        shutil.copy(Path(__file__).parent / name, node_project)
    compile_typescript(node_project, *(str(file) for file in node_project.glob("*.ts")))
    return node_project


@pytest.mark.parametrize("index", range(len(OUTPUTS)))
def test_a_program_in_the_document_runs(index: int, programs: Path) -> None:
    assert len(PROGRAMS) == len(OUTPUTS)
    assert re.fullmatch(OUTPUTS[index], run(["node", f"document{index}.js"], programs))


def test_a_watch_and_a_connection_outlive_a_restart(programs: Path, shop: Shop) -> None:
    with subprocess.Popen(
        ["node", "watch.js", f"http://{shop.address}"],
        cwd=programs,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as watch:
        assert watch.stdin
        assert watch.stdout
        assert watch.stdout.readline() == "items: 1\n"
        shop.stop()
        shop.start()
        print("go on", file=watch.stdin, flush=True)
        assert watch.stdout.readlines() == ["items: 2\n", "Canceled\n"]


def test_repetitions_have_one_request_id_and_a_deadline(programs: Path) -> None:
    with scripted_server() as server:
        server.script = [
            refusal(grpc.StatusCode.UNAVAILABLE),
            refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY", retry_after=0.01),
            added(3),
            refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED"),
        ]
        output = run(["node", "retries.js", f"http://{server.address}"], programs)
        assert output.splitlines() == [
            "3",
            "ResourceExhausted LIMIT_EXCEEDED 3",
            "DeadlineExceeded",
            "page ",
            "page 2",
        ]
        ids = [attempt.request.request_id for attempt in server.attempts]
        assert ids[0]
        assert ids[0] == ids[1] == ids[2] != ids[3]
        assert {attempt.authorization for attempt in server.attempts} == {"Bearer a-token"}
        assert all(0 < attempt.seconds_left <= 5 for attempt in server.attempts)


def test_the_package_contains_what_it_needs_and_nothing_else() -> None:
    with tarfile.open(find_package()) as package:
        files = {name.removeprefix("package/") for name in package.getnames()}
    assert {"LICENSE", "package.json", "dist/index.d.ts", "dist/node.js", "dist/gen/service_config.js"} <= files
    assert all(re.fullmatch(r"LICENSE|package\.json|README\.md|dist/.+\.(js|d\.ts)", file) for file in files)


def test_the_lock_file_names_no_registry() -> None:
    assert "://" not in re.sub(r'"url": "[^"]*"', "", (TYPESCRIPT / "package-lock.json").read_text(encoding="utf-8"))
