"""The commands with TLS and identities: which start is refused, and how a server's health is asked for."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cart_grpc.cli import program as cli
from tests.access.guarded import BEYOND, Files, running


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize(
    "command", [["serve"], ["serve", "--workers", "2"], ["dev", "--simulator-listen", "127.0.0.1:0"]]
)
def test_a_server_beyond_loopback_that_lets_anyone_be_any_user_does_not_start(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CART_LISTEN", BEYOND)
    monkeypatch.setenv(
        "CART_DATABASE_URL", "postgresql://127.0.0.1:1/shop" if "--workers" in command else "sqlite:///x.db"
    )
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"cart-grpc: CART_LISTEN: {BEYOND} is beyond loopback")
    assert said.err.count("\n") == 1
    assert "CART_TOKEN_KEYS" in said.err
    assert "CART_ALLOW_ANYONE_TO_BE_ANY_USER=true" in said.err
    assert not (tmp_path / "x.db").exists()


async def test_health_asks_the_plaintext_port_of_a_server_with_tls(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    async with running(files) as server:
        monkeypatch.setenv("CART_TLS_CERT_FILE", str(files.folder / "server.pem"))
        monkeypatch.setenv("CART_TLS_KEY_FILE", str(files.folder / "server.key"))
        monkeypatch.setenv("CART_LISTEN", f"127.0.0.1:{server.ports.port}")
        monkeypatch.setenv("CART_HEALTH_LISTEN", f"0.0.0.0:{server.ports.health_port}")
        assert await asyncio.to_thread(cli.main, ["health"]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert await asyncio.to_thread(cli.main, ["health"]) == 1


@pytest.mark.parametrize("name", ["TLS_KEY_FILE", "TOKEN_KEYS", "CLIENT_CA_FILE", "TLS_CERT_FILE"])
def test_a_key_in_the_place_of_its_file_is_not_printed(
    name: str, files: Files, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv(f"CART_{name}", (files.folder / "server.key").read_text())
    assert cli.main(["config"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"cart-grpc: CART_{name}: must be the path of a file")
    assert "PRIVATE" not in said.err + said.out
