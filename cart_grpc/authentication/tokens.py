"""Bearer tokens: JSON Web Tokens (RFC 7519), signed by an issuer, that prove who makes a call.

Importing this module takes a while, because of PyJWT. Import it only if tokens are configured.
"""

import json
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

from cachetools import LRUCache
from jwt import PyJWT
from jwt.exceptions import (
    InvalidAudienceError,
    InvalidIssuerError,
    InvalidSignatureError,
    InvalidSubjectError,
    InvalidTokenError,
    MissingRequiredClaimError,
    PyJWTError,
)
from jwt.utils import base64url_decode

from cart_grpc.authentication.caller import ADMIN_READ, ADMIN_WRITE, SCOPES, USER_SCOPES, Caller
from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.keys import Key
from cart_grpc.authentication.refusals import Fault, TokenExpired, TokenInvalid
from cart_grpc.names import is_id

# As long as many proxies allow a header to be. gRPC bounds all metadata of a call at 16 KiB.
MAX_TOKEN_LENGTH: Final = 8_192
MAX_REMEMBERED: Final = 20_000
# The end of the year 9999, the last time that most programs can write. Later ones are mistakes, such as milliseconds.
_MAX_TIME: Final = 253_402_300_799
_ADMIN_SCOPES: Final = frozenset({ADMIN_READ, ADMIN_WRITE})
_CLAIM_FAULTS: Final = {
    "exp": Fault.EXPIRATION_TIME,
    "iat": Fault.ISSUED_AT,
    "iss": Fault.ISSUER,
    "aud": Fault.AUDIENCE,
    "sub": Fault.SUBJECT,
}
_FAULTS: Final[tuple[tuple[type[PyJWTError], Fault], ...]] = (
    (InvalidSignatureError, Fault.SIGNATURE),
    (InvalidIssuerError, Fault.ISSUER),
    (InvalidAudienceError, Fault.AUDIENCE),
    (InvalidSubjectError, Fault.SUBJECT),
)


class Tokens:
    """Verifies tokens of `issuer` for `audience`, and remembers those that were valid.

    `leeway` is how far the issuer's clock may differ from `clock`, the time in seconds since the Unix epoch.

    The memory has at most MAX_REMEMBERED tokens, by their SHA-256, and forgets all of them when the keys change.
    Invalid tokens are not remembered: they cannot take the place of valid ones, and each costs at most one check of a
    signature. That check takes 0.1 to 0.2 ms and runs in the event loop, which a change to another thread would cost
    too.
    """

    def __init__(
        self,
        keys: KeySet,
        *,
        issuer: str,
        audience: str,
        leeway: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._clock = clock
        self._callers: LRUCache[bytes, Caller] = LRUCache(MAX_REMEMBERED)
        self._generation = keys.generation
        # Times are checked here: the library has no clock that a test could set, and takes strings for times.
        self._jwt = PyJWT(
            {
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "verify_jti": False,
                "require": list(_CLAIM_FAULTS),
            }
        )

    def find(self, token: str) -> Caller | None:
        """Return the caller if `token` is remembered and still valid. It does no I/O."""
        self._forget_if_keys_changed()
        digest = _digest(token)
        caller = self._callers.get(digest)
        if caller is None or caller.expiry is None or self._clock() < caller.expiry:
            return caller
        del self._callers[digest]
        return None

    async def verify(self, token: str) -> Caller:
        """Verify `token` and remember it. It may have to wait for the issuer's keys, at most for one load of them.

        Raises TokenInvalid, TokenExpired or KeysUnavailable.
        """
        header = _parse_header(token)
        kid, algorithm = header.get("kid"), header.get("alg")
        if kid is not None and not isinstance(kid, str):
            raise TokenInvalid(Fault.MALFORMED)
        # RFC 7515, 4.1.11. No extension is supported. `jku`, `jwk`, `x5u` and `x5c` are never read.
        if "crit" in header or "b64" in header:
            raise TokenInvalid(Fault.CRITICAL_HEADER)
        # Before the key: a token that can never be valid must not cause a load of the keys.
        if not isinstance(algorithm, str) or algorithm not in self._keys.algorithms:
            raise TokenInvalid(Fault.ALGORITHM)
        key = await self._keys.get(kid)
        if algorithm != key.algorithm:
            raise TokenInvalid(Fault.ALGORITHM)
        caller = self._to_caller(self._decode(token, key))
        self._forget_if_keys_changed()
        self._callers[_digest(token)] = caller
        return caller

    def _forget_if_keys_changed(self) -> None:
        if self._generation != self._keys.generation:
            self._generation = self._keys.generation
            self._callers.clear()

    def _decode(self, token: str, key: Key) -> Mapping[str, Any]:
        """Check the signature, and the claims except for the times. Raises TokenInvalid."""
        try:
            claims: dict[str, Any] = self._jwt.decode(
                token, key.jwk, [key.algorithm], audience=self._audience, issuer=self._issuer
            )
        except MissingRequiredClaimError as error:
            fault = _CLAIM_FAULTS[error.claim]
        except InvalidTokenError as error:
            fault = next((fault for kind, fault in _FAULTS if isinstance(error, kind)), Fault.MALFORMED)
        except (PyJWTError, ValueError, RecursionError):
            # A text that is not Unicode, or deeper than the library expects.
            fault = Fault.MALFORMED
        else:
            return claims
        raise TokenInvalid(fault)

    def _to_caller(self, claims: Mapping[str, Any]) -> Caller:
        """Return the caller. Raises TokenInvalid or TokenExpired, the latter only if nothing else is wrong."""
        user_id = claims["sub"]
        if not is_id(user_id):
            raise TokenInvalid(Fault.SUBJECT)
        expiry = _to_time(claims["exp"], Fault.EXPIRATION_TIME)
        issue_time = _to_time(claims["iat"], Fault.ISSUED_AT)
        start_time = _to_time(claims["nbf"], Fault.NOT_BEFORE) if "nbf" in claims else issue_time
        scopes = _to_scopes(claims)
        now = self._clock()
        if max(issue_time, start_time) > now + self._leeway:
            raise TokenInvalid(Fault.NOT_YET_VALID)
        if expiry + self._leeway <= now:
            raise TokenExpired
        return Caller(user_id, "", scopes, expiry + self._leeway)


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="surrogatepass")).digest()


def _parse_header(token: str) -> dict[str, Any]:
    """Return the header. It is not verified yet, and no other part is decoded. Raises TokenInvalid."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenInvalid(Fault.TOO_LONG)
    try:
        header = json.loads(base64url_decode(token.partition(".")[0]))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise TokenInvalid(Fault.MALFORMED)
    return header


def _to_time(value: Any, fault: Fault) -> float:
    """Return the seconds since the Unix epoch in a NumericDate (RFC 7519, 2). Raises TokenInvalid."""
    # In Python, a bool is a number. NaN fails every comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TIME:
        raise TokenInvalid(fault)
    return float(value)


def _to_scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes that a token gives (RFC 8693, 4.2). Raises TokenInvalid.

    They are those of a user, unless `scope` names at least one scope of this service: then just the named ones. Those
    of operators give nothing, because the operators' port takes no tokens.
    """
    value = claims.get("scope", "")
    words = value.split(" ") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TokenInvalid(Fault.SCOPE)
    named = SCOPES.intersection(words)
    return named - _ADMIN_SCOPES if named else USER_SCOPES
