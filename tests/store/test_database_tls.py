"""TLS to PostgreSQL with real certificates."""

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from cart_grpc.store.database_connection import Connector
from cart_grpc.store.database_parameters import DatabaseUrlError
from cart_grpc.store.database_url import parse
from tests.postgres import PostgresServer, running_postgres
from tests.tls import NOW, SECRET, Files, Front, TlsServer, prepare

# The first line that fits decides. The front checks client certificates.
ACCESS = """
local all postgres trust
local all certified trust
local all all scram-sha-256
"""


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[PostgresServer]:
    with running_postgres() as server:
        await prepare(server, ACCESS)
        yield server


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
async def tls(files: Files, server: PostgresServer) -> AsyncIterator[TlsServer]:
    async with Front(files, server).listening() as front:
        yield front


def url(tls: TlsServer, query: str, *, user: str = f"cart:{SECRET}", host: str = "localhost") -> str:
    return f"postgresql://{user}@{host}:{tls.port}/cart?{query.replace('DIR', str(tls.files.folder))}"


@asynccontextmanager
async def shown(tls: TlsServer, certificate: trustme.LeafCert) -> AsyncIterator[None]:
    """Let the server show another certificate for a while."""
    await tls.show(certificate)
    try:
        yield
    finally:
        await tls.show(tls.files.authority.issue_cert("localhost"))


async def connects(url: str) -> bool:
    """Connect, and return whether the connection is encrypted."""
    connection = await Connector(parse(url, {})).connect()
    try:
        assert await connection.fetchval("SELECT 1") == 1
        return connection._transport.get_extra_info("cipher") is not None  # type: ignore[attr-defined]
    finally:
        await connection.close()


async def failure(url: str) -> str:
    """Connect, which must fail as if the database were away, and return the error's text."""
    with pytest.raises(OSError, match=r".") as failed:
        await connects(url)
    text = str(failed.value)
    assert text.isprintable()
    assert SECRET not in text
    return text


VERIFIED = "sslmode=verify-full&sslrootcert=DIR/ca.pem"


@pytest.mark.parametrize(
    ("query", "host"),
    [
        (VERIFIED, "localhost"),
        (VERIFIED + "&channel_binding=prefer&application_name=shop&connect_timeout=5", "localhost"),
        (VERIFIED + "&ssl_min_protocol_version=TLSv1.3", "localhost"),
        ("sslmode=verify-ca&sslrootcert=DIR/ca.pem", "127.0.0.1"),
        ("sslmode=require", "127.0.0.1"),
        ("sslmode=require&sslrootcert=DIR/ca.pem", "127.0.0.1"),
        ("sslmode=prefer", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_a_connection_is_encrypted(tls: TlsServer, query: str, host: str) -> None:
    assert await connects(url(tls, query, host=host))


async def test_the_systems_authorities_verify_a_public_certificate(
    tls: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenSSL reads the system's authorities from this file.
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.files.folder / "ca.pem"))
    assert await connects(url(tls, "sslmode=verify-full&sslrootcert=system"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.files.folder / "other-ca.pem"))
    assert "certificate verify failed" in await failure(url(tls, "sslmode=verify-full&sslrootcert=system"))


@pytest.mark.parametrize(
    ("query", "host", "why"),
    [
        ("sslmode=verify-full&sslrootcert=DIR/other-ca.pem", "localhost", "certificate verify failed"),
        ("sslmode=verify-ca&sslrootcert=DIR/other-ca.pem", "localhost", "certificate verify failed"),
        ("sslmode=require&sslrootcert=DIR/other-ca.pem", "localhost", "certificate verify failed"),
        (VERIFIED, "127.0.0.1", "IP address mismatch"),
    ],
)
async def test_a_server_that_cannot_prove_its_identity_is_refused_in_one_line(
    tls: TlsServer, query: str, host: str, why: str
) -> None:
    assert why in await failure(url(tls, query, host=host))


async def test_a_host_name_that_is_not_in_the_certificate_is_refused(tls: TlsServer) -> None:
    verified = url(tls, VERIFIED)
    async with shown(tls, tls.files.authority.issue_cert("db.example")):
        assert "Hostname mismatch" in await failure(verified)
    assert await connects(verified)


async def test_an_expired_certificate_is_refused(tls: TlsServer) -> None:
    expired = tls.files.authority.issue_cert("localhost", not_after=NOW - dt.timedelta(hours=1))
    async with shown(tls, expired):
        assert "certificate has expired" in await failure(url(tls, VERIFIED))


async def test_a_revoked_certificate_is_refused(tls: TlsServer) -> None:
    revoked = tls.files.authority.issue_cert("localhost")
    verified = url(tls, f"{VERIFIED}&sslcrl={tls.files.revoke(revoked)}")
    assert await connects(verified)
    async with shown(tls, revoked):
        assert "certificate revoked" in await failure(verified)


@pytest.mark.parametrize("key", ["client.key", f"encrypted.key&sslpassword={SECRET}"])
async def test_a_client_certificate_takes_the_place_of_a_password(tls: TlsServer, key: str) -> None:
    query = f"{VERIFIED}&sslcert=DIR/client.pem&sslkey=DIR/{key}"
    assert await connects(url(tls, query, user="certified"))


async def test_a_wrong_sslpassword_is_refused_at_once_and_asks_nobody(tls: TlsServer) -> None:
    query = f"{VERIFIED}&sslcert=DIR/client.pem&sslkey=DIR/encrypted.key&sslpassword=x"
    with pytest.raises(DatabaseUrlError, match=r"^the parameter sslcert must name .* the right sslpassword$"):
        Connector(parse(url(tls, query, user="certified"), {}))


async def test_a_certificate_that_is_renewed_is_used_without_a_restart(tls: TlsServer, tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    authorities.write_bytes((tls.files.folder / "ca.pem").read_bytes())
    connector = Connector(parse(url(tls, f"sslmode=verify-full&sslrootcert={authorities}"), {}))
    await (await connector.connect()).close()
    authorities.write_bytes((tls.files.folder / "other-ca.pem").read_bytes())
    with pytest.raises(OSError, match="certificate verify failed"):
        await connector.connect()
    # A file that is gone for a moment means that the database is away, not that the service has a bug.
    authorities.unlink()
    with pytest.raises(
        ConnectionError, match=r"^the parameter sslrootcert names .*, which cannot be read: No such file"
    ):
        await connector.connect()


async def test_tls_can_begin_at_once(files: Files, server: PostgresServer) -> None:
    async with Front(files, server, direct=True).listening() as front:
        assert await connects(url(front, f"{VERIFIED}&sslnegotiation=direct"))
