"""Every kind of caller: by a token, by a certificate, or by neither; and what the service must take it for."""

import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.utils import base64url_decode, base64url_encode

from tests.access.rules import ACT_AS, ALL_SCOPES, READ, WRITE, Answer, unauthenticated
from tests.authentication.issuer import ABSENT, SigningKey, make_token, signing_key

Port = Literal["token", "service", "operator", "health"]
# From a user to the metadata of a call.
Send = Callable[[str], Sequence[tuple[str, str]]]
STRANGER: Final = "stranger.example"


def name_of(scopes: Sequence[str]) -> str:
    """The DNS name of the service that has just these scopes."""
    return "-".join(scope.replace(".", "-") for scope in scopes) + ".example"


_SETS: Final = [
    *combinations(ALL_SCOPES, 1), (READ, WRITE), (READ, ACT_AS), (WRITE, ACT_AS), (READ, WRITE, ACT_AS),
    ALL_SCOPES[3:], ALL_SCOPES,
]  # fmt: skip
# As in CART_SERVICES. Each scope alone, and those together that belong together.
SERVICES: Final[Mapping[str, list[str]]] = {name_of(scopes): list(scopes) for scopes in _SETS}


@dataclass(frozen=True)
class Certificate:
    """The certificate that a caller shows: one for `name`; "" for none."""

    name: str = ""
    foreign: bool = False
    expired: bool = False


@dataclass(frozen=True)
class Caller:
    """One kind of caller of one port.

    `refusal` is the answer to every call that needs an identity. A caller with `acts_for_itself` is the user to whom
    `send` was given; any other one is no user. Without `connects`, its handshake fails.
    """

    name: str
    port: Port
    scopes: frozenset[str] = frozenset()
    refusal: Answer | None = None
    acts_for_itself: bool = False
    send: Send = lambda _: ()
    certificate: Certificate = Certificate()
    connects: bool = True
    plaintext: bool = False


class _Unsigned(SigningKey):
    def sign(self, signed: bytes) -> bytes:
        return b""


class _PublicKeyAsSecret(SigningKey):
    """Signs as HS256, with the public key in the place of the secret that both sides share."""

    def sign(self, signed: bytes) -> bytes:
        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return hmac.digest(public, signed, "sha256")


def _header(kind: type[SigningKey], algorithm: str) -> Send:
    """A token whose header says `algorithm`, signed by `kind`."""

    def send(user: str) -> Sequence[tuple[str, str]]:
        key = signing_key("RS256")
        return bearer(make_token(user, key=kind(key.kid, key.algorithm, key.key), header={"alg": algorithm}))

    return send


def _signed(make_key: Callable[[], SigningKey]) -> Send:
    """A token signed with this key. RSA keys take a while to make, so only a test that runs makes them."""
    return lambda user: bearer(make_token(user, key=make_key()))


def bearer(token: str) -> Sequence[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


def _tampered(user: str) -> Sequence[tuple[str, str]]:
    """A token of somebody else in which `user` has put its own name."""
    header, payload, signature = make_token("somebody").split(".")
    claims = json.loads(base64url_decode(payload)) | {"sub": user}
    return bearer(f"{header}.{base64url_encode(json.dumps(claims).encode()).decode()}.{signature}")


def _with(**changes: Any) -> Send:
    return lambda user: bearer(make_token(user, **changes))


def _at(seconds: float, claim: str) -> Send:
    def send(user: str) -> Sequence[tuple[str, str]]:
        changes: dict[str, Any] = {claim: int(time.time() + seconds)}
        return bearer(make_token(user, **changes))

    return send


def _sub(value: Any) -> Send:
    return lambda _: bearer(make_token(value))


def _invalid(fault: str) -> Answer:
    return unauthenticated("TOKEN_INVALID", fault)


_MISSING: Final = unauthenticated("TOKEN_MISSING")
_BAD_TOKENS: Final[Mapping[str, tuple[Answer, Send]]] = {
    "no token": (_MISSING, lambda _: ()),
    "not Bearer": (_MISSING, lambda user: [("authorization", f"Basic {make_token(user)}")]),
    "a proxy's word": (
        _MISSING,
        lambda user: [("x-forwarded-user", user), ("x-forwarded-access-token", f"Bearer {make_token(user)}")],
    ),
    "not a token": (_invalid("MALFORMED"), lambda _: bearer("x.y.z")),
    "expired": (unauthenticated("TOKEN_EXPIRED"), _with(expires_in=-60)),
    "without exp": (_invalid("EXPIRATION_TIME"), _with(exp=ABSENT)),
    "not yet valid": (_invalid("NOT_YET_VALID"), _at(60, "nbf")),
    "from the future": (_invalid("NOT_YET_VALID"), _at(60, "iat")),
    "wrong issuer": (_invalid("ISSUER"), _with(iss="https://evil.example")),
    "wrong audience": (_invalid("AUDIENCE"), _with(aud="other.example")),
    "alg none": (_invalid("ALGORITHM"), _header(_Unsigned, "none")),
    "HS256 with the public key": (_invalid("ALGORITHM"), _header(_PublicKeyAsSecret, "HS256")),
    "the algorithm of another key": (_invalid("ALGORITHM"), _signed(lambda: signing_key("ES256").renamed("RS256-1"))),
    "crit": (_invalid("CRITICAL_HEADER"), _with(header={"crit": ["x"], "x": 1})),
    "tampered": (_invalid("SIGNATURE"), _tampered),
    "another key under a known kid": (
        _invalid("SIGNATURE"),
        _signed(lambda: signing_key("ES256", 2).renamed("ES256-1")),
    ),
    "unknown kid": (_invalid("UNKNOWN_KEY"), _signed(lambda: signing_key("ES256").renamed("unknown"))),
    "without sub": (_invalid("SUBJECT"), _sub(ABSENT)),
    "sub is a number": (_invalid("SUBJECT"), _sub(7)),
    "sub is empty": (_invalid("SUBJECT"), _sub("")),
    "sub is a wildcard": (_invalid("SUBJECT"), _sub("-")),
    "sub has a slash": (_invalid("SUBJECT"), lambda user: bearer(make_token(f"{user}/carts/default"))),
    "two tokens": (_invalid("SEVERAL"), lambda user: [*bearer(make_token(user))] * 2),
}
_SCOPES: Final[Mapping[str, tuple[str | None, set[str]]]] = {
    "user A": (None, {READ, WRITE}),
    "user B": (None, {READ, WRITE}),
    "user with another service's scope": ("openid", {READ, WRITE}),
    "user who may read": (READ, {READ}),
    "user who may write": (WRITE, {WRITE}),
    "user with the scopes of operators": ("admin.read admin.write", set()),
    "token with act-as": (f"{READ} {WRITE} {ACT_AS}", {READ, WRITE, ACT_AS}),
    "token with act-as only": (ACT_AS, {ACT_AS}),
}


def _by_token() -> list[Caller]:
    bad = [Caller(name, "token", refusal=refusal, send=send) for name, (refusal, send) in _BAD_TOKENS.items()]
    good = [
        Caller(
            name, "token", frozenset(scopes), acts_for_itself=True, send=_with(**({"scope": scope} if scope else {}))
        )
        for name, (scope, scopes) in _SCOPES.items()
    ]
    every = name_of(ALL_SCOPES)
    shown = Caller("a certificate", "token", refusal=_MISSING, certificate=Certificate(every))
    return [*bad, *good, shown, Caller("plaintext", "token", send=_with(), connects=False, plaintext=True)]


def _by_certificate(port: Port) -> list[Caller]:
    every = name_of(ALL_SCOPES)
    services = [
        Caller(" ".join(scopes), port, frozenset(scopes), certificate=Certificate(name))
        for name, scopes in SERVICES.items()
    ]
    stranger = Caller("unknown name", port, certificate=Certificate(STRANGER))
    token = replace(stranger, name="unknown name with a token", send=_with(scope=" ".join(ALL_SCOPES)))
    outside = Caller("", port, connects=False)
    return [
        *services,
        stranger,
        token,
        replace(outside, name="foreign authority", certificate=Certificate(every, foreign=True)),
        replace(outside, name="expired certificate", certificate=Certificate(every, expired=True)),
        replace(outside, name="no certificate", send=_with()),
        replace(outside, name="plaintext", plaintext=True),
    ]


CALLERS: Final[tuple[Caller, ...]] = (
    *_by_token(), *_by_certificate("service"), *_by_certificate("operator"),
    Caller("anyone", "health", plaintext=True),
)  # fmt: skip
