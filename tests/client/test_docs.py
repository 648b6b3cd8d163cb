"""Runs the programs in the documents as they are written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.shop import Shop

ROOT = Path(__file__).parents[2]
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = [
    (document, program)
    for document in ("README.md", "docs/client.md")
    for program in PROGRAM.findall((ROOT / document).read_text(encoding="utf-8"))
]


def run(program: str, shop: Shop, folder: Path) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program.replace("127.0.0.1:50051", shop.address)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


@pytest.mark.parametrize(("document", "program"), PROGRAMS)
def test_a_program_in_the_documents_runs(document: str, program: str, shop: Shop, tmp_path: Path) -> None:
    assert run(program, shop, tmp_path)


def test_the_first_program_sells_what_it_added(shop: Shop, tmp_path: Path) -> None:
    program = next(program for document, program in PROGRAMS if document == "docs/client.md")
    assert len(program.strip().splitlines()) <= 24
    program = program.replace('"alice"', '"eve"')
    assert run(program, shop, tmp_path) == "to pay: 24.68 EUR\nSTATE_COMPLETED\n"
