"""The OpenAPI document of the Reservation API: two linters find nothing in it, and the simulator keeps it."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cart_grpc.simulator.server import SimulatorConfig, SimulatorServer, make_simulator

pytestmark = pytest.mark.contract

FOLDER = Path(__file__).parent
DOCUMENT = FOLDER.parents[1] / "protos/cartgrpc/reservation/v1/reservation.openapi.yaml"
LINTERS = {
    "redocly": ("lint", "--config", "redocly.yaml"),
    "spectral": ("lint", "--fail-severity=hint", "--ruleset", ".spectral.yaml"),
}
# Redocly neither reports its use nor looks for a newer version.
QUIET = os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
# Proto3 JSON accepts more than the document says: null for an absent field, and numbers as strings. A batch answers 200
# with an error for each invalid entry.
NOT_CHECKED = "negative_data_rejection"
TESTED = re.compile(r"Tested: 4$", re.MULTILINE)


def lint(linter: str, document: Path) -> subprocess.CompletedProcess[str]:
    """Run a linter. Its warnings fail, too."""
    command = [str(FOLDER / "node_modules/.bin" / linter), *LINTERS[linter], str(document)]
    return subprocess.run(command, cwd=FOLDER, env=QUIET, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("linter", LINTERS)
def test_a_linter_finds_nothing_in_the_document_and_finds_an_error(linter: str, tmp_path: Path) -> None:
    ended = lint(linter, DOCUMENT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    broken = tmp_path / DOCUMENT.name
    text = DOCUMENT.read_text(encoding="utf-8")
    broken.write_text(text.replace("operationId: GetReservation", "operationId: ApplyReservation"), encoding="utf-8")
    assert lint(linter, broken).returncode == 1


async def schemathesis(document: Path, folder: Path) -> tuple[int | None, str]:
    """Send messages that Schemathesis makes of the document to a simulator. Returns the exit status and the report."""
    server = SimulatorServer(make_simulator(SimulatorConfig(seed=1)))
    ports = await server.start(None, "127.0.0.1:0")
    try:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")), "run", str(document),
            "--url", f"http://127.0.0.1:{ports.http}", "--phases", "coverage,fuzzing", "--max-examples", "10",
            "--seed", "1", "--exclude-checks", NOT_CHECKED, "--continue-on-failure", "--no-color",
            cwd=folder, env=os.environ | {"SCHEMATHESIS_HOOKS": str(FOLDER / "hooks.py"), "COLUMNS": "200"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        report = (await process.communicate())[0].decode()
    finally:
        await server.stop(0)
    return process.returncode, report


async def test_the_simulator_keeps_the_document(tmp_path: Path) -> None:
    status, report = await schemathesis(DOCUMENT, tmp_path)
    assert status == 0, report
    assert TESTED.search(report), report
    assert "warning" not in report.lower(), report
