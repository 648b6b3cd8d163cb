"""TLS of a server: the certificate that it shows and the authorities of its callers, from files that may be replaced.

A renewal swaps a link to their folder, as Kubernetes does, or writes one file after the other. So the files
may be incomplete, or not belong together, for a while. Until they do, the old ones stay in use.
"""

import asyncio
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc

from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.metrics import CERTIFICATE_EXPIRY
from cart_grpc.tls.reloaded_files import CHECK_SECONDS, NamedFile, Reloaded

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

log = Log(__name__)
# A warning comes this long before a certificate expires, or in the last tenth of its life: some live for an hour.
EXPIRY_WARNING: Final = dt.timedelta(days=7)
# gRPC's BoringSSL signs a handshake with no other curve, and not with Ed25519.
_CURVES: Final = ("secp256r1", "secp384r1")
_MIN_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True)
class _Material:
    """The contents of the files, checked. `authorities` is None if no caller has to show a certificate."""

    chain: bytes
    key: bytes = field(repr=False)
    authorities: bytes | None
    # The first one is the certificate that the server shows.
    certificates: "tuple[tuple[NamedFile, Certificate], ...]"

    def configure(self) -> grpc.ServerCertificateConfiguration:
        """Return a new object: gRPC frees each one after its first use."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.authorities)


class ServerTls:
    """A certificate chain, its private key, and the authorities of callers' certificates, if callers show any.

    `now` returns the time of this machine. Raises FileError.
    """

    def __init__(
        self,
        chain: NamedFile,
        key: NamedFile,
        authorities: NamedFile | None = None,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._chain = chain
        self._key = key
        self._authorities = authorities
        self._now = now
        self._warned: set[tuple[NamedFile, Certificate, bool]] = set()
        self._files = Reloaded([file for file in (chain, key, authorities) if file], self._load)

    def credentials(self, *, verify_callers: bool) -> grpc.ServerCredentials:
        """Return credentials for one port. With `verify_callers`, a caller needs a certificate of the authorities."""
        served = self._files.get()

        def fetch() -> Any:
            # gRPC calls this in threads of its own, at each handshake, with a lock that all handshakes need. So it must
            # be quick, and must not raise. None means "no change", which grpc's stubs do not know.
            nonlocal served
            newest = self._files.get()
            if newest is served:
                return None
            served = newest
            return newest.configure()

        return grpc.dynamic_ssl_server_credentials(served.configure(), fetch, verify_callers)

    async def run(self) -> None:
        """Look at the files every second, also if nobody connects, until cancelled. Log certificates that expire."""
        while True:
            # In a thread: a network file system may hang.
            await asyncio.to_thread(self.check)
            await asyncio.sleep(CHECK_SECONDS)

    def check(self) -> None:
        """Look at the files. Log each certificate once when it is about to expire, and once when it has expired."""
        now = self._now()
        _set_expiry(self._files.get())
        for file, certificate in self._files.get().certificates:
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            if end - now > min(EXPIRY_WARNING, (end - begin) / 10):
                continue
            has_expired = end <= now
            if (file, certificate, has_expired) not in self._warned:
                self._warned.add((file, certificate, has_expired))
                verb = "expired" if has_expired else "expires"
                text, subject = "%s: the certificate of %s %s at %s", _subject(certificate)
                log(events.CERTIFICATE_EXPIRING, text, file.name, subject, verb, _show(end), setting=file.name)

    def _load(self) -> _Material:
        """Raises FileError."""
        chain, key = self._chain.read(), self._key.read()
        shown = [(self._chain, certificate) for certificate in _parse_certificates(self._chain, chain)]
        certificate = shown[0][1]
        _check_key(self._key, key, self._chain, certificate)
        authorities = None
        if self._authorities:
            authorities = self._authorities.read()
            shown += [(self._authorities, one) for one in _parse_certificates(self._authorities, authorities)]
        subject, expiry = _subject(certificate), _show(certificate.not_valid_after_utc)
        text = "%s: the certificate is of %s and expires at %s"
        log(events.CERTIFICATE_LOADED, text, self._chain.name, subject, expiry, setting=self._chain.name)
        return _Material(chain, key, authorities, tuple(shown))


def _set_expiry(material: _Material) -> None:
    """Set the gauge of each file: the first of its certificates to expire."""
    first: dict[str, dt.datetime] = {}
    for file, certificate in material.certificates:
        end = certificate.not_valid_after_utc
        first[file.name] = min(end, first.get(file.name, end))
    for name, end in first.items():
        CERTIFICATE_EXPIRY.labels(name).set(end.timestamp())


def _parse_certificates(file: NamedFile, content: bytes) -> "list[Certificate]":
    from cryptography import x509  # noqa: PLC0415 - slow to import

    try:
        return x509.load_pem_x509_certificates(content)
    except Exception:  # noqa: BLE001 - the content is not a certificate
        raise file.fault("it is not a PEM file with certificates") from None


def _check_key(file: NamedFile, content: bytes, chain: NamedFile, certificate: "Certificate") -> None:
    """Raise FileError unless the content is the key of the certificate, and gRPC can use it."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415 - slow to import
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise file.fault("the key is encrypted; remove its passphrase, as `openssl pkey` does") from None
    except Exception:  # noqa: BLE001 - the content is not a key, and the error could quote it
        raise file.fault("it is not a PEM file with a private key") from None
    is_usable = (isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES
    )
    if not is_usable:
        raise file.fault(
            f"the key must be RSA of at least {_MIN_RSA_BITS} bits, or ECDSA with the curve P-256 or P-384"
        )
    if key.public_key() != certificate.public_key():
        raise file.fault(f"it is not the key of the first certificate in {chain.name}")


def _subject(certificate: "Certificate") -> str:
    """Return the subject of a certificate; without one, its subject alternative names."""
    from cryptography import x509  # noqa: PLC0415 - slow to import

    if subject := certificate.subject.rfc4514_string():
        return subject
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return "(no name)"
    return ", ".join(str(name.value) for name in extension.value)


def _show(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
