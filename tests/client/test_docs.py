"""Runs the programs in the documents as they are written."""

import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.client.scripted import added, scripted_server
from tests.client.shop import Shop
from tests.pem import PemFolder, issue, new_authority

ROOT = Path(__file__).parents[2]
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = [
    (document, program)
    for document in ("README.md", "docs/clients/python.md")
    for program in PROGRAM.findall((ROOT / document).read_text(encoding="utf-8"))
]
TLS_ADDRESS = "carts.example:443"


def run(program: str, shop: Shop, folder: Path) -> str:
    return run_at(program.replace("127.0.0.1:50051", shop.address), folder)


def run_at(program: str, folder: Path) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


@pytest.mark.parametrize(("document", "program"), [each for each in PROGRAMS if TLS_ADDRESS not in each[1]])
def test_a_program_in_the_documents_runs(document: str, program: str, shop: Shop, tmp_path: Path) -> None:
    assert run(program, shop, tmp_path)


def test_the_first_program_sells_what_it_added(shop: Shop, tmp_path: Path) -> None:
    program = next(program for document, program in PROGRAMS if document == "docs/clients/python.md")
    assert len(program.strip().splitlines()) <= 24
    program = program.replace('"alice"', '"eve"')
    assert run(program, shop, tmp_path) == "to pay: 24.68 EUR\nSTATE_COMPLETED\n"


def test_the_program_for_tls_sends_its_token_by_tls(tmp_path: Path) -> None:
    authority, files = new_authority(), PemFolder(tmp_path)
    files.write_authorities("ca.pem", authority)
    files.write("token", "a-token\n")
    shown = issue(authority)
    chain = b"".join(pem.bytes() for pem in shown.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(shown.private_key_pem.bytes(), chain)])
    [program] = [program for _, program in PROGRAMS if TLS_ADDRESS in program]
    with scripted_server(credentials) as server:
        server.script = [added(3)]
        assert run_at(program.replace(TLS_ADDRESS, server.address), tmp_path) == "3\n"
        assert [attempt.authorization for attempt in server.attempts] == ["Bearer a-token"]
