"""How this service proves itself to the Reservation API, and recognises it: TLS and a bearer token, from files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cart_grpc.addresses import is_loopback
from cart_grpc.client_tls import TlsFiles
from cart_grpc.reloaded_files import NamedFile, Reloaded

Headers: TypeAlias = tuple[tuple[str, str], ...]
"""Headers of HTTP, or metadata of gRPC."""


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """The files for one Reservation API. `token` is the file with the bearer token."""

    tls: TlsFiles = field(default_factory=TlsFiles)
    token: NamedFile | None = None

    def check(self, *, secure: bool, host: str) -> None:
        """Raise ValueError if the URL does not fit: `secure` means with TLS."""
        if secure:
            return
        needs = "needs a URL with TLS: grpcs://, https:// or basic+https://"
        if self.tls.named:
            raise ValueError(f"{self.tls.named[0].name} {needs}")
        if self.token and not is_loopback(host):
            raise ValueError(f"{self.token.name} {needs}; without TLS, the token may go to a loopback address only")


NO_FILES: Final = CredentialFiles()


def reloaded_headers(token: NamedFile | None) -> Callable[[], Headers]:
    """Return a function that returns the newest headers of a call. Raises FileError."""
    if token is None:
        return lambda: ()
    return Reloaded([token], lambda: (("authorization", f"Bearer {token.read_token()}"),)).get
