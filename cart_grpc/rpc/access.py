"""The caller of a call, as its metadata or its connection proves."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc

from cart_grpc.authentication.caller import NOBODY, Caller
from cart_grpc.authentication.refusals import Fault, TokenInvalid, TokenMissing, Unauthenticated
from cart_grpc.authentication.services import Services
from cart_grpc.authentication.turns import Turns

if TYPE_CHECKING:
    # Its import takes a while, and only a port with tokens needs it.
    from cart_grpc.authentication.tokens import Tokens

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# The caller of the current task's call; NOBODY if it was not authenticated.
CALLER: Final[ContextVar[Caller]] = ContextVar("caller", default=NOBODY)


class Access(ABC):
    """How the callers of one port prove who they are. Other metadata, such as `x-forwarded-*`, identifies nobody."""

    @abstractmethod
    def find(self, context: Context) -> Caller | None:
        """Return the caller if that takes no I/O and no cryptography; else None."""

    @abstractmethod
    async def verify(self, context: Context) -> Caller:
        """Return the caller.

        Raises Unauthenticated, Unavailable if the key of a token cannot be fetched, or Overloaded.
        """


class AccessByToken(Access):
    """Callers send a token in the metadata `authorization: Bearer TOKEN` (RFC 6750).

    Calls whose token is remembered never wait. All others take turns.
    """

    def __init__(self, tokens: "Tokens") -> None:
        self._tokens = tokens
        self._turns = Turns()

    def find(self, context: Context) -> Caller | None:
        try:
            return self._tokens.find(_token_of(context))
        except Unauthenticated:
            return None

    async def verify(self, context: Context) -> Caller:
        await self._turns.take(context.peer())
        began, is_refused = time.monotonic(), True
        try:
            token = _token_of(context)
            # Another call may have verified it in the meantime.
            caller = self._tokens.find(token) or await self._tokens.verify(token)
            is_refused = False
            return caller
        finally:
            self._turns.pay(time.monotonic() - began, is_refused=is_refused)


class AccessByCertificate(Access):
    """Callers show a certificate, which TLS has verified. `services` are matched by its subject alternative names."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def find(self, context: Context) -> Caller:
        # Together 5 us. A caller cannot be remembered by `context.peer()`: later connections use the same ports again.
        # Not `peer_uri` and `peer_dns`: there, gRPC for Python ends a name at its first zero byte, so the owner of
        # another name, such as `spiffe://shop.example/web\0.evil.example`, would be the service `.../web`.
        identity: Mapping[str, Iterable[bytes]] = context.auth_context()
        (certificate,) = identity.get("x509_pem_cert", (b"",))
        return self._services.caller_of(certificate)

    async def verify(self, context: Context) -> Caller:
        return self.find(context)


def _token_of(context: Context) -> str:
    """Return the bearer token. Raises TokenMissing, or TokenInvalid if `authorization` has several values."""
    values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not values:
        raise TokenMissing
    if len(values) > 1:
        raise TokenInvalid(Fault.SEVERAL)
    # A string: only keys that end with -bin have bytes.
    scheme, _, token = str(values[0]).partition(" ")
    if scheme.lower() != "bearer" or not (token := token.strip(" ")):
        raise TokenMissing
    return token
