"""Who may call the simulator: TLS, client certificates and bearer tokens, as a real Reservation API may require them.

The files are read again when they change, so that a partner can try a rotation.
"""

import hmac
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc

from cart_grpc.pem_files import read_authorities, read_identity
from cart_grpc.reloaded_files import NamedFile, Reloaded
from cart_grpc.simulator.errors import Unauthenticated

Headers = Iterable[tuple[str, str | bytes]]
_SCHEME: Final = "Bearer "


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
        newest = Reloaded(self._tls_files, self._read_files)
        served = newest.get()
        is_required = self.authorities is not None

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # A new object each time, because gRPC frees it after its use. None: as before.
            nonlocal served
            before, served = served, newest.get()
            return None if served is before else grpc.ssl_server_certificate_configuration(*served)

        first = grpc.ssl_server_certificate_configuration(*served)
        return grpc.dynamic_ssl_server_credentials(first, cast("Any", fetch), require_client_authentication=is_required)

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
        newest = Reloaded([self.tokens], self._read_tokens)

        def check(headers: Headers) -> None:
            found = next((value for name, value in headers if name.lower() == "authorization"), "")
            token = found.removeprefix(_SCHEME).encode() if isinstance(found, str) else b""
            if not any(hmac.compare_digest(token, valid) for valid in newest.get()):
                raise Unauthenticated

        return check

    @property
    def _tls_files(self) -> list[NamedFile]:
        return [file for file in (self.certificate, self.key, self.authorities) if file]

    def _read_identity(self) -> tuple[bytes, bytes]:
        assert self.certificate  # noqa: S101 - see `secure`
        assert self.key  # noqa: S101
        return read_identity(self.certificate, self.key)

    def _read_files(self) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        authorities = read_authorities(self.authorities) if self.authorities else None
        return [self._read_identity()], authorities

    def _read_context(self) -> ssl.SSLContext:
        self._read_identity()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        if self.certificate and self.key:
            context.load_cert_chain(self.certificate.path, self.key.path, password=lambda: "")
        if self.authorities:
            read_authorities(self.authorities)
            context.load_verify_locations(cafile=self.authorities.path)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _read_tokens(self) -> list[bytes]:
        assert self.tokens  # noqa: S101 - see `checker`
        return [line for line in self.tokens.read().split() if line]


OPEN: Final = Access()
"""Everybody may call, without TLS."""
