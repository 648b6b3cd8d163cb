"""Services: callers that show a certificate."""

from collections.abc import Iterable, Mapping

from cart_grpc.authentication.caller import NOBODY, Caller


class Services:
    """The scopes of each service, by a subject alternative name of its certificate (RFC 5280, 4.2.1.6).

    A key with `://` is compared with the URIs of a certificate, any other key with its DNS names; exactly, byte for
    byte. E-mail addresses, IP addresses and the common name identify nobody.
    """

    def __init__(self, scopes: Mapping[str, frozenset[str]]) -> None:
        self._uris = {name.encode(): name for name in scopes if "://" in name}
        self._dns = {name.encode(): name for name in scopes if "://" not in name}
        self._scopes = scopes

    def caller_of(self, uris: Iterable[bytes], dns_names: Iterable[bytes]) -> Caller:
        """Return the service with these URIs and DNS names in its certificate.

        If several services match, the caller has the scopes of all of them, and the name of the first: URIs before DNS
        names, each in the order of the certificate. Without a match, it is NOBODY.
        """
        names = [self._uris[uri] for uri in uris if uri in self._uris]
        names += [self._dns[name] for name in dns_names if name in self._dns]
        if not names:
            return NOBODY
        return Caller("", names[0], frozenset().union(*(self._scopes[name] for name in names)))
