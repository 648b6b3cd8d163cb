"""Certificates, and servers that show them, for the tests of TLS to PostgreSQL."""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from tests.postgres import PostgresServer

SECRET = "hunter2"
NOW = dt.datetime.now(dt.UTC)


class Files:
    """The files of an authority and its clients, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        trustme.CA().cert_pem.write_to_path(folder / "other-ca.pem")
        certificate = self.authority.issue_cert(common_name="certified")
        certificate.cert_chain_pems[0].write_to_path(folder / "client.pem")
        certificate.private_key_pem.write_to_path(folder / "client.key")
        key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
        encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(SECRET.encode()))
        (folder / "encrypted.key").write_bytes(encrypted)

    def revoke(self, certificate: trustme.LeafCert) -> Path:
        """Return a file with the authority's list of revoked certificates, which has this one."""
        authority = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())
        revoked = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes())
        entry = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number).revocation_date(NOW).build()
        builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject).last_update(NOW)
        builder = builder.next_update(NOW + dt.timedelta(days=1)).add_revoked_certificate(entry)
        key = serialization.load_pem_private_key(self.authority.private_key_pem.bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        file = self.folder / "revoked.pem"
        file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return file


class TlsServer(Protocol):
    """A PostgreSQL server that shows a certificate on `port`."""

    files: Files
    port: int

    async def show(self, certificate: trustme.LeafCert) -> None:
        """Show another certificate from now on."""
        ...


class Front:
    """TLS in front of a PostgreSQL server that has none, such as the one that the tests install.

    It answers the driver's request for TLS as PostgreSQL does, and passes everything on to the server's Unix socket.
    With `direct`, TLS begins at once.
    """

    def __init__(self, files: Files, server: PostgresServer, *, direct: bool = False) -> None:
        self.files = files
        self.port = 0
        self._socket = f"{server.directory}/.s.PGSQL.{server.port}"
        self._direct = direct
        self._context = self._new_context()

    async def show(self, certificate: trustme.LeafCert) -> None:
        context = self._new_context()
        certificate.configure_cert(context)
        self._context = context

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.files.folder / "ca.pem"))
        # As PostgreSQL: it asks for a certificate, and checks one that the client sends.
        context.verify_mode = ssl.CERT_OPTIONAL
        context.set_alpn_protocols(["postgresql"])
        return context

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Front"]:
        await self.show(self.files.authority.issue_cert("localhost"))
        serving = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context if self._direct else None)
        self.port = serving.sockets[0].getsockname()[1]
        async with serving:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self._direct:
                # SSLRequest: the length 8 and a code.
                assert await reader.readexactly(8) == bytes.fromhex("0000000804d2162f")
                writer.write(b"S")
                await writer.start_tls(self._context)
            far_reader, far_writer = await asyncio.open_unix_connection(self._socket)
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while content := await reader.read(65536):
            writer.write(content)
            await writer.drain()
    finally:
        writer.close()


async def ask(server: PostgresServer, *statements: str) -> Any:
    """Run statements as the superuser, and return the value that the last one selects."""
    connection = await asyncpg.connect(server.url.replace("+asyncpg", ""))
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


async def prepare(server: PostgresServer, access: str) -> None:
    """Make the roles `cart`, with a password, and `certified`, without; `access` is the file pg_hba.conf."""
    await ask(
        server,
        f"CREATE ROLE cart LOGIN PASSWORD '{SECRET}'",
        "CREATE ROLE certified LOGIN IN ROLE cart",
        "CREATE DATABASE cart OWNER cart",
    )
    (server.data / "pg_hba.conf").write_text(access)
    await reload(server)


async def reload(server: PostgresServer) -> None:
    """Make the server read its configuration again, and wait until it has."""
    before = await ask(server, "SELECT pg_conf_load_time()")
    server.reload()
    async with asyncio.timeout(30):
        while await ask(server, "SELECT pg_conf_load_time()") == before:
            await asyncio.sleep(0.01)
