"""Services: callers that show a certificate."""

from collections.abc import Mapping
from typing import Final

from cachetools import LRUCache

from cart_grpc.authentication.caller import NOBODY, Caller

# A certificate in PEM has about 1 KiB.
MAX_REMEMBERED: Final = 2_000


class Services:
    """The scopes of each service, by a subject alternative name of its certificate (RFC 5280, 4.2.1.6).

    A key with `://` is compared with the URIs of a certificate, any other key with its DNS names; exactly, byte for
    byte. E-mail addresses, IP addresses and the common name identify nobody.
    """

    def __init__(self, scopes: Mapping[str, frozenset[str]]) -> None:
        # Imported here because it takes a while, and not during a call.
        from cryptography import x509  # noqa: PLC0415

        self._x509 = x509
        self._scopes = scopes
        self._callers: LRUCache[bytes, Caller] = LRUCache(MAX_REMEMBERED)

    def caller_of(self, certificate: bytes) -> Caller:
        """Return the service that shows `certificate`, which is PEM and which TLS has verified.

        If several services match, the caller has the scopes of all of them, and the name of the first: URIs before DNS
        names, each in the order of the certificate. Without a match, it is NOBODY. The last MAX_REMEMBERED certificates
        are remembered: reading one takes 0.1 ms.
        """
        caller = self._callers.get(certificate)
        if caller is None:
            caller = self._callers[certificate] = self._read(certificate)
        return caller

    def _read(self, certificate: bytes) -> Caller:
        uris, dns_names = self._names_in(certificate)
        names = [name for name in uris if "://" in name and name in self._scopes]
        names += [name for name in dns_names if "://" not in name and name in self._scopes]
        if not names:
            return NOBODY
        return Caller("", names[0], frozenset().union(*(self._scopes[name] for name in names)))

    def _names_in(self, certificate: bytes) -> tuple[list[str], list[str]]:
        """Return the URIs and the DNS names. None, if one of its names cannot be read."""
        x509 = self._x509
        try:
            read = x509.load_pem_x509_certificate(certificate)
            names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (
            ValueError,
            x509.InvalidVersion,
            x509.ExtensionNotFound,
            x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType,
        ):
            return [], []
        return names.get_values_for_type(x509.UniformResourceIdentifier), names.get_values_for_type(x509.DNSName)
