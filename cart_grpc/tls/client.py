"""TLS of a client: its files, the credentials that gRPC and HTTP make of them, and the causes of failed handshakes."""

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc

from cart_grpc.tls.pem_files import read_authorities, read_identity
from cart_grpc.tls.reloaded_files import FileError, NamedFile

NOBODY_LISTENS: Final = "connection refused"
_UNTRUSTED: Final = "no authority that is trusted here has signed the server's certificate"
# gRPC says no more than that the connection was closed.
_REFUSED: Final = "the server closes new connections: it may require TLS, or a client certificate that it trusts"
# The errors of gRPC's and Python's TLS, and their meanings. The first that fits counts.
_CAUSES: Final = (
    (r"certificate has expired", "the server's certificate has expired"),
    (r"certificate is not yet valid", "the server's certificate is not valid yet"),
    (r"Hostname (Verification Check failed|mismatch)|IP address mismatch", "the server's certificate has another name"),
    (r"CERTIFICATE_VERIFY_FAILED", _UNTRUSTED),
    (r"WRONG_VERSION_NUMBER|record layer failure", "the server does not speak TLS"),
    (r"ALERT_CERTIFICATE_REQUIRED|PEER_DID_NOT_RETURN", "the server requires a client certificate"),
    (r"ALERT_CERTIFICATE_EXPIRED", "the client certificate has expired"),
    (r"ALERT_UNKNOWN_CA|ALERT_(BAD|UNKNOWN)_CERTIFICATE|ALERT_\w*CERTIFICATE", "the client certificate is refused"),
)
_NOT_CONNECTED: Final = re.compile(r"failed to connect")
_CLOSED: Final = re.compile("Socket closed|Connection reset|Broken pipe|Endpoint closed", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of a client: the authorities of the server's certificate, and the client's own certificate and key.

    Without `authorities`, those that the public trusts. Certificate and key are both given or both None.
    """

    authorities: NamedFile | None = None
    certificate: NamedFile | None = None
    key: NamedFile | None = None

    @property
    def named(self) -> Sequence[NamedFile]:
        """The files that are given."""
        return [file for file in (self.authorities, self.certificate, self.key) if file]

    def to_credentials(self) -> grpc.ChannelCredentials:
        """Read the files for gRPC. Raises FileError."""
        authorities = read_authorities(self.authorities) if self.authorities else None
        key, chain = self._read_identity() or (None, None)
        return grpc.ssl_channel_credentials(authorities, key, chain)

    def to_context(self) -> ssl.SSLContext:
        """Read the files for HTTP/1.1. Raises FileError."""
        if self.authorities:
            read_authorities(self.authorities)
        context = ssl.create_default_context(cafile=self.authorities.path if self.authorities else None)
        context.set_alpn_protocols(["http/1.1"])
        if self.certificate and self.key:
            self._read_identity()
            context.load_cert_chain(self.certificate.path, self.key.path, password=lambda: "")
        return context

    def _read_identity(self) -> tuple[bytes, bytes] | None:
        return read_identity(self.certificate, self.key) if self.certificate and self.key else None


def check_pair(certificate: NamedFile | None, key: NamedFile | None, names: tuple[str, str]) -> None:
    """Raise FileError if only one of a certificate and its key is given. `names`: the settings or options of both."""
    if (certificate is None) != (key is None):
        given, missing = names if certificate else names[::-1]
        raise FileError(f"{given}: it needs {missing}, too")


def explain(text: str) -> str:
    """Return the cause of a failed connection in a few words, or `text`, what gRPC or Python says, if it is unknown."""
    for pattern, cause in _CAUSES:
        if re.search(pattern, text):
            return cause
    if not _NOT_CONNECTED.search(text):
        return text
    if _CLOSED.search(text):
        return _REFUSED
    return NOBODY_LISTENS if "Connection refused" in text else text
