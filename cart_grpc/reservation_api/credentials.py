"""How this service proves itself to the Reservation API, and recognises it: TLS and a bearer token, from files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cart_grpc.addresses import is_loopback
from cart_grpc.tls.client import TlsFiles
from cart_grpc.tls.reloaded_files import NamedFile, Reloaded
from cart_grpc.tracing import TRACE_CONTEXT

Headers: TypeAlias = tuple[tuple[str, str], ...]
"""Headers of HTTP, or metadata of gRPC."""

_SCHEME: Final = "Bearer "
_MIN_SECRET: Final = 6


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
    """Return a function that returns the headers of a call: the newest token, and the current trace context.

    Raises FileError.
    """
    find_token: Callable[[], Headers] = tuple
    if token is not None:
        find_token = Reloaded([token], lambda: (("authorization", f"{_SCHEME}{token.read_token()}"),)).get

    def headers() -> Headers:
        context = TRACE_CONTEXT.get()
        return (*find_token(), ("traceparent", context)) if context else find_token()

    return headers


def hide_token(headers: Headers, content: bytes) -> bytes:
    """Return what a server sent, with the token in `headers` overwritten: errors are logged, stored and shown.

    The length stays, so that a protobuf message stays valid.
    """
    for name, value in headers:
        token = value.removeprefix(_SCHEME).encode()
        # A shorter one is no secret, and would be found everywhere.
        if name == "authorization" and len(token) >= _MIN_SECRET:
            content = content.replace(token, b"*" * len(token))
    return content
