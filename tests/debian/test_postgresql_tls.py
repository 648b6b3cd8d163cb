"""The tests of TLS again, on Debian's PostgreSQL, which is built with OpenSSL."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.ports import free_port
from tests.postgres import PostgresServer, process_owner, running_postgres
from tests.store.test_database_tls import (  # noqa: F401 - they run again with the fixture `tls` of this module
    test_a_certificate_that_is_renewed_is_used_without_a_restart,
    test_a_client_certificate_takes_the_place_of_a_password,
    test_a_connection_is_encrypted,
    test_a_host_name_that_is_not_in_the_certificate_is_refused,
    test_a_revoked_certificate_is_refused,
    test_a_server_that_cannot_prove_its_identity_is_refused_in_one_line,
    test_an_expired_certificate_is_refused,
)
from tests.tls import Files, ask, prepare, reload

pytestmark = pytest.mark.debian
ACCESS = """
local all all trust
hostssl all certified all cert
hostssl all all all scram-sha-256
"""
SETTINGS = {"ssl_ca_file": "ca.pem", "ssl_cert_file": "server.pem", "ssl_key_file": "server.key", "ssl": "on"}


class RealTls:
    """Debian's PostgreSQL with `ssl = on`."""

    def __init__(self, files: Files, server: PostgresServer) -> None:
        self.files = files
        self.port = server.port
        self._server = server

    async def show(self, certificate: trustme.LeafCert) -> None:
        self.write("server.pem", certificate.cert_chain_pems[0].bytes())
        self.write("server.key", certificate.private_key_pem.bytes())
        await reload(self._server)

    def write(self, name: str, content: bytes) -> None:
        """Write a file that only the server's user can read, as PostgreSQL wants its key."""
        file = self._server.data / name
        file.unlink(missing_ok=True)
        file.touch(0o600)
        file.write_bytes(content)
        if owner := process_owner():
            os.chown(file, owner["user"], owner["group"])


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert binaries, "install Debian's package postgresql"
    with running_postgres(port=free_port(), binaries=binaries[-1]) as server:
        yield server


@pytest.fixture(scope="module")
async def tls(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> RealTls:
    files = Files(tmp_path_factory.mktemp("tls"))
    real = RealTls(files, server)
    real.write("ca.pem", files.authority.cert_pem.bytes())
    await prepare(server, ACCESS)
    await real.show(files.authority.issue_cert("localhost"))
    for name, value in SETTINGS.items():
        await ask(server, f"ALTER SYSTEM SET {name} = '{value}'", "SELECT 1")
    await reload(server)
    return real
