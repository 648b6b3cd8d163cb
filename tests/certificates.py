"""An authority whose certificates have any subject alternative names, as those of services have."""

import datetime as dt
from dataclasses import dataclass
from typing import Final

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_DAY: Final = dt.timedelta(days=1)


@dataclass(frozen=True)
class Certified:
    """A certificate with its key, both as PEM."""

    key: bytes
    certificate: bytes


class Authority:
    """Issues certificates. `pem` is its own one."""

    def __init__(self) -> None:
        self._authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.pem = self._authority.cert_pem.bytes()

    def issue(self, *names: x509.GeneralName, common_name: str = "nobody", valid_for: dt.timedelta = _DAY) -> Certified:
        """Return a certificate with these subject alternative names; a negative `valid_for` makes an expired one."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate(self.pem)
        signing_key = serialization.load_pem_private_key(self._authority.private_key_pem.bytes(), None)
        assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = x509.CertificateBuilder(issuer.subject, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - 2 * _DAY).not_valid_after(now + valid_for)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(signing_key, hashes.SHA256())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Certified(private, certificate.public_bytes(Encoding.PEM))

    def server(self, *, asks: bool) -> grpc.ServerCredentials:
        """Return the credentials of a server on localhost. With `asks`, its callers must show a certificate."""
        shown = self.issue(x509.DNSName("localhost"))
        return grpc.ssl_server_credentials(
            [(shown.key, shown.certificate)], self.pem if asks else None, require_client_auth=asks
        )

    def channel(self, shown: Certified | None = None) -> grpc.ChannelCredentials:
        """Return the credentials of a caller that trusts this authority, and shows `shown`."""
        return grpc.ssl_channel_credentials(
            self.pem, shown.key if shown else None, shown.certificate if shown else None
        )
