"""The callers that the simulator accepts. It can require TLS, client certificates and tokens, as a real API may.

The files are read again when they change, so that a partner can try a rotation.
"""

import hmac
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import grpc

from cart_grpc.simulator.errors import Unauthenticated
from cart_grpc.tls.pem_files import read_authorities, read_identity
from cart_grpc.tls.reloaded_files import NamedFile, Reloaded
from cart_grpc.tls.server import ServerTls

Headers = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Access:
    """The files of the simulator. Without `certificate` and `key`, there is no TLS.

    With `authorities`, every caller needs a certificate of theirs. With `tokens`, every call needs one of the tokens in
    that file, which has one in each line.
    """

    certificate: NamedFile | None = None
    key: NamedFile | None = None
    authorities: NamedFile | None = None
    tokens: NamedFile | None = None

    @property
    def secure(self) -> bool:
        """Whether the ports use TLS."""
        return self.certificate is not None

    def to_credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of a gRPC server. Raises FileError."""
        certificate, key = self._identity
        return ServerTls(certificate, key, self.authorities).credentials(verify_callers=self.authorities is not None)

    def to_context(self) -> ssl.SSLContext:
        """Return the context of an HTTP server. Raises FileError."""
        newest = Reloaded(self._tls_files, self._read_context)
        context = self._read_context()

        def use_newest(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = newest.get()

        context.sni_callback = use_newest
        return context

    def checker(self) -> Callable[[Headers], None]:
        """Return a function that raises Unauthenticated for a call without a valid token. Raises FileError."""
        if self.tokens is None:
            return lambda _headers: None
        newest = Reloaded([self.tokens], self._read_valid)

        def check(headers: Headers) -> None:
            found = next((value for name, value in headers if name.lower() == "authorization"), "")
            given = found.encode() if isinstance(found, str) else found
            if not any(hmac.compare_digest(given, valid) for valid in newest.get()):
                raise Unauthenticated

        return check

    @property
    def _tls_files(self) -> list[NamedFile]:
        return [file for file in (self.certificate, self.key, self.authorities) if file]

    @property
    def _identity(self) -> tuple[NamedFile, NamedFile]:
        assert self.certificate  # noqa: S101 - see `secure`
        assert self.key  # noqa: S101
        return self.certificate, self.key

    def _read_context(self) -> ssl.SSLContext:
        certificate, key = self._identity
        read_identity(certificate, key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate.path, key.path, password=lambda: "")
        if self.authorities:
            read_authorities(self.authorities)
            context.load_verify_locations(cafile=self.authorities.path)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _read_valid(self) -> list[bytes]:
        assert self.tokens  # noqa: S101 - see `checker`
        return [b"Bearer " + token for token in self.tokens.read().split()]


OPEN: Final = Access()
"""Everybody may call, without TLS."""
