"""Which tokens are valid, who their callers are, and which rule each other token breaks."""

import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.utils import base64url_decode, base64url_encode

from cart_grpc.authentication.caller import CARTS_ACT_AS, CARTS_READ, CARTS_WRITE, USER_SCOPES, Caller
from cart_grpc.authentication.refusals import Fault, TokenExpired, TokenInvalid
from cart_grpc.authentication.tokens import MAX_TOKEN_LENGTH, Tokens
from tests.authentication.conftest import ALGORITHMS, LEEWAY, NOW, Clock
from tests.authentication.issuer import ABSENT, AUDIENCE, ISSUER, SigningKey, make_token, seal, signing_key

ES256 = signing_key("ES256")
OTHER = signing_key("ES256", 2)
CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW, "exp": NOW + 600}


def token(user_id: Any = "alice", **changes: Any) -> str:
    return make_token(user_id, now=NOW, **changes)


def sealed(payload: str, header: str = json.dumps({"alg": "ES256", "kid": "ES256-1"})) -> str:
    """A token that is signed as it should be, with any text as its parts."""
    return seal(header.encode(), payload.encode(), ES256)


def with_claim(name: str, value: str) -> str:
    """A token in which `value` is written as it is, so that it need not be JSON."""
    return sealed(json.dumps(CLAIMS | {name: 0}).replace(f'"{name}": 0', f'"{name}": {value}'))


def with_part(index: int, part: str) -> str:
    parts = token().split(".")
    parts[index] = part
    return ".".join(parts)


def of_another_user() -> str:
    """A valid token in which somebody has written another user."""
    claims = json.loads(base64url_decode(token().split(".")[1])) | {"sub": "bob"}
    return with_part(1, base64url_encode(json.dumps(claims).encode()).decode())


def unsigned(algorithm: str) -> str:
    return token(header={"alg": algorithm}).rpartition(".")[0] + "."


def signed_with_the_public_key() -> str:
    """A token whose HMAC has the issuer's public key as its secret: everybody knows it."""
    key = signing_key("RS256")
    secret = key.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    start = token(key=key, header={"alg": "HS256"}).rpartition(".")[0]
    return f"{start}.{base64url_encode(hmac.digest(secret, start.encode(), hashlib.sha256)).decode()}"


def signed_with_its_own_key(**header: Any) -> str:
    """A token that brings the key that it is signed with."""
    return token(key=OTHER.renamed("ES256-1"), header=header)


INVALID: dict[str, tuple[Fault, str]] = {
    "empty": (Fault.MALFORMED, ""),
    "no parts": (Fault.MALFORMED, "abc"),
    "two parts": (Fault.MALFORMED, token().rpartition(".")[0]),
    "four parts": (Fault.MALFORMED, token() + ".abc"),
    "five parts, as if encrypted": (Fault.MALFORMED, token() + ".abc.def"),
    "space before": (Fault.MALFORMED, " " + token()),
    "space after": (Fault.MALFORMED, token() + " "),
    "two tokens": (Fault.MALFORMED, f"{token()},{token()}"),
    "not ASCII": (Fault.MALFORMED, token() + "é"),
    "lone surrogate": (Fault.MALFORMED, token() + "\ud800"),
    "NUL": (Fault.MALFORMED, token() + "\0"),
    "header is not base64url": (Fault.MALFORMED, with_part(0, "!!!!")),
    "header is not JSON": (Fault.MALFORMED, sealed("{}", "alg")),
    "header is a list": (Fault.MALFORMED, sealed("{}", "[]")),
    "header is deep": (Fault.MALFORMED, sealed("{}", "[" * 5000)),
    "header has a huge number": (Fault.MALFORMED, sealed("{}", f'{{"alg": {"9" * 5000}}}')),
    "payload is not base64url": (Fault.MALFORMED, with_part(1, "!!!!")),
    "payload is not JSON": (Fault.MALFORMED, sealed("sub=alice")),
    "payload is a list": (Fault.MALFORMED, sealed("[]")),
    "payload is null": (Fault.MALFORMED, sealed("null")),
    "payload is deep": (Fault.MALFORMED, sealed("[" * 5000)),
    "payload is not UTF-8": (Fault.MALFORMED, seal({"alg": "ES256", "kid": "ES256-1"}, b'{"sub": "\xff"}', ES256)),
    "signature is not base64url": (Fault.MALFORMED, with_part(2, "!!!!")),
    "too long": (Fault.TOO_LONG, token(text="x" * MAX_TOKEN_LENGTH)),
    "kid is a number": (Fault.MALFORMED, token(header={"kid": 1})),
    "kid is a list": (Fault.MALFORMED, token(header={"kid": ["ES256-1"]})),
    "kid is unknown": (Fault.UNKNOWN_KEY, token(header={"kid": "ES256-9"})),
    "kid is a path": (Fault.UNKNOWN_KEY, token(header={"kid": "../../../dev/null"})),
    "kid is empty": (Fault.UNKNOWN_KEY, token(header={"kid": ""})),
    "kid is missing": (Fault.KEY_ID_MISSING, token(header={"kid": ABSENT})),
    "alg is missing": (Fault.ALGORITHM, token(header={"alg": ABSENT})),
    "alg is none": (Fault.ALGORITHM, unsigned("none")),
    "alg is None": (Fault.ALGORITHM, unsigned("None")),
    "alg is empty": (Fault.ALGORITHM, unsigned("")),
    "alg is a list": (Fault.ALGORITHM, token(header={"alg": ["ES256"]})),
    "alg is lower case": (Fault.ALGORITHM, token(header={"alg": "es256"})),
    "alg is HS256, with the public key as the secret": (Fault.ALGORITHM, signed_with_the_public_key()),
    "alg is another key's": (Fault.ALGORITHM, token(header={"alg": "RS256"})),
    "alg is not allowed, PS256 with an RSA key": (
        Fault.ALGORITHM,
        token(key=SigningKey("RS256-1", "PS256", signing_key("RS256").key)),
    ),
    "alg is not allowed, ES384": (Fault.ALGORITHM, token(key=signing_key("ES384"))),
    "crit": (Fault.CRITICAL_HEADER, token(header={"crit": ["exp"], "exp": NOW})),
    "crit is empty": (Fault.CRITICAL_HEADER, token(header={"crit": []})),
    "crit is null": (Fault.CRITICAL_HEADER, token(header={"crit": None})),
    "crit b64": (Fault.CRITICAL_HEADER, token(header={"crit": ["b64"], "b64": True})),
    "b64 is false": (Fault.CRITICAL_HEADER, token(header={"b64": False})),
    "signature is missing": (Fault.SIGNATURE, with_part(2, "")),
    "signature is another token's": (Fault.SIGNATURE, with_part(2, token("bob").rpartition(".")[2])),
    "signature is zero": (Fault.SIGNATURE, with_part(2, base64url_encode(bytes(64)).decode())),
    "signature is another key's": (Fault.SIGNATURE, token(key=OTHER.renamed("ES256-1"))),
    "payload is tampered with": (Fault.SIGNATURE, of_another_user()),
    "header has jwk": (Fault.SIGNATURE, signed_with_its_own_key(jwk=OTHER.to_jwk())),
    "header has jku": (Fault.SIGNATURE, signed_with_its_own_key(jku="https://127.0.0.1:1/keys")),
    "header has x5u": (Fault.SIGNATURE, signed_with_its_own_key(x5u="https://127.0.0.1:1/keys")),
    "header has x5c": (Fault.SIGNATURE, signed_with_its_own_key(x5c=["MIIB"])),
    "iss is missing": (Fault.ISSUER, token(iss=ABSENT)),
    "iss is another": (Fault.ISSUER, token(iss="https://other.example")),
    "iss has a slash more": (Fault.ISSUER, token(iss=ISSUER + "/")),
    "iss is a list": (Fault.ISSUER, token(iss=[ISSUER])),
    "iss is null": (Fault.ISSUER, token(iss=None)),
    "aud is missing": (Fault.AUDIENCE, token(aud=ABSENT)),
    "aud is another": (Fault.AUDIENCE, token(aud="shop.example")),
    "aud contains ours": (Fault.AUDIENCE, token(aud=AUDIENCE + "x")),
    "aud is empty": (Fault.AUDIENCE, token(aud="")),
    "aud is an empty list": (Fault.AUDIENCE, token(aud=[])),
    "aud is a list of others": (Fault.AUDIENCE, token(aud=["shop.example", "other.example"])),
    "aud is a list with a number": (Fault.AUDIENCE, token(aud=[AUDIENCE, 1])),
    "aud is an object": (Fault.AUDIENCE, token(aud={AUDIENCE: 1})),
    "aud is a number": (Fault.AUDIENCE, token(aud=1)),
    "sub is missing": (Fault.SUBJECT, token(ABSENT)),
    "sub is null": (Fault.SUBJECT, token(None)),
    "sub is a number": (Fault.SUBJECT, token(7)),
    "sub is a list": (Fault.SUBJECT, token(["alice"])),
    "sub is empty": (Fault.SUBJECT, token("")),
    "sub is -": (Fault.SUBJECT, token("-")),
    "sub is ..": (Fault.SUBJECT, token("..")),
    "sub has a slash": (Fault.SUBJECT, token("alice/carts/main")),
    "sub has a line feed": (Fault.SUBJECT, token("alice\n")),
    "sub has NUL": (Fault.SUBJECT, token("alice\0")),
    "sub is not ASCII": (Fault.SUBJECT, token("älice")),
    "sub is too long": (Fault.SUBJECT, token("a" * 129)),
    "iat is in the future": (Fault.NOT_YET_VALID, token(iat=NOW + LEEWAY + 1)),
    "iat is in the future, nbf is not": (Fault.NOT_YET_VALID, token(iat=NOW + LEEWAY + 1, nbf=NOW)),
    "nbf is in the future": (Fault.NOT_YET_VALID, token(nbf=NOW + LEEWAY + 1)),
    "nbf is in the future, in milliseconds": (Fault.NOT_BEFORE, token(nbf=NOW * 1000)),
    "nbf is null": (Fault.NOT_BEFORE, token(nbf=None)),
    "scope is a number": (Fault.SCOPE, token(scope=1)),
    "scope is null": (Fault.SCOPE, token(scope=None)),
    "scope is an object": (Fault.SCOPE, token(scope={CARTS_READ: True})),
    "scope is a list with a number": (Fault.SCOPE, token(scope=[CARTS_READ, 1])),
}
NOT_TIMES = {
    "a string": f'"{NOW}"',
    "an empty string": '""',
    "true": "true",
    "a list": "[1]",
    "an object": "{}",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "negative": "-1",
    "a huge integer": "9" * 400,
    "a huge float": "1e300",
    "an infinite float": "1e999",
    "after the year 9999": "253402300800",
}


@pytest.mark.parametrize(("fault", "text"), INVALID.values(), ids=INVALID)
async def test_an_invalid_token_is_refused_with_the_rule_that_it_breaks(
    fault: Fault, text: str, tokens: Tokens
) -> None:
    with pytest.raises(TokenInvalid) as caught:
        await tokens.verify(text)
    assert caught.value.metadata == {"fault": fault.name}
    assert tokens.find(text) is None


@pytest.mark.parametrize("value", NOT_TIMES.values(), ids=NOT_TIMES)
@pytest.mark.parametrize(
    ("claim", "fault"),
    [("exp", Fault.EXPIRATION_TIME), ("iat", Fault.ISSUED_AT), ("nbf", Fault.NOT_BEFORE)],
    ids=["exp", "iat", "nbf"],
)
async def test_a_time_that_is_not_one_is_refused(claim: str, fault: Fault, value: str, tokens: Tokens) -> None:
    with pytest.raises(TokenInvalid) as caught:
        await tokens.verify(with_claim(claim, value))
    assert caught.value.fault == fault


@pytest.mark.parametrize(("claim", "fault"), [("exp", Fault.EXPIRATION_TIME), ("iat", Fault.ISSUED_AT)])
@pytest.mark.parametrize("value", [ABSENT, None], ids=["missing", "null"])
async def test_a_token_without_exp_or_iat_is_refused(claim: str, fault: Fault, value: Any, tokens: Tokens) -> None:
    with pytest.raises(TokenInvalid) as caught:
        await tokens.verify(token(**{claim: value}))
    assert caught.value.fault == fault


async def test_the_tables_have_every_rule_that_a_token_can_break() -> None:
    times = {Fault.EXPIRATION_TIME, Fault.ISSUED_AT, Fault.NOT_BEFORE}
    # SEVERAL is a fault of the metadata around the token.
    assert {fault for fault, _ in INVALID.values()} | times == {fault for fault in Fault if fault.name != "SEVERAL"}


@pytest.mark.parametrize("text", [token(secret="hunter2", iss="hunter2"), token("hunter2/"), "hunter2", "hunter2.a.b"])
async def test_a_refusal_says_nothing_of_the_token(text: str, tokens: Tokens) -> None:
    with pytest.raises(TokenInvalid) as caught:
        await tokens.verify(text)
    assert "hunter2" not in f"{caught.value} {caught.value.metadata}"
    assert text.partition(".")[0] not in f"{caught.value} {caught.value.metadata}"


VALID: dict[str, tuple[Caller, str]] = {
    "sub with all the letters that ids may have": (
        Caller("auth0|a.b_c~d@e:f+g-H", "", USER_SCOPES, NOW + 610),
        token("auth0|a.b_c~d@e:f+g-H"),
    ),
    "aud is a list with ours": (Caller("alice", "", USER_SCOPES, NOW + 610), token(aud=["x", AUDIENCE])),
    "nbf now, iat at the edge of the leeway": (
        Caller("alice", "", USER_SCOPES, NOW + 610),
        token(nbf=NOW, iat=NOW + LEEWAY),
    ),
    "times with fractions": (Caller("alice", "", USER_SCOPES, NOW + 0.5 + LEEWAY), token(exp=NOW + 0.5, iat=NOW - 0.5)),
    "iat is zero, exp is in the year 9999": (
        Caller("alice", "", USER_SCOPES, 253_402_300_799 + LEEWAY),
        token(iat=0, exp=253_402_300_799),
    ),
    "jti is a number, and other claims": (
        Caller("alice", "", USER_SCOPES, NOW + 610),
        token(jti=7, act={"sub": "bob"}, groups=["admins"], email="bob@example.com"),
    ),
    "typ of an access token": (Caller("alice", "", USER_SCOPES, NOW + 610), token(header={"typ": "at+jwt"})),
    "expired within the leeway": (
        Caller("alice", "", USER_SCOPES, NOW + 1),
        token(exp=NOW - LEEWAY + 1, iat=NOW - 60),
    ),
}


@pytest.mark.parametrize(("caller", "text"), VALID.values(), ids=VALID)
async def test_a_valid_token_proves_its_user(caller: Caller, text: str, tokens: Tokens) -> None:
    assert await tokens.verify(text) == caller
    assert tokens.find(text) == caller


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_may_be_signed_with_each_allowed_algorithm(algorithm: str, tokens: Tokens) -> None:
    assert (await tokens.verify(token(key=signing_key(algorithm)))).user_id == "alice"


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        (ABSENT, USER_SCOPES),
        ("", USER_SCOPES),
        ("openid email", USER_SCOPES),
        ([], USER_SCOPES),
        ("openid carts.read", {CARTS_READ}),
        (["openid", "carts.write"], {CARTS_WRITE}),
        ("carts.read carts.write carts.act-as", {CARTS_READ, CARTS_WRITE, CARTS_ACT_AS}),
        ("carts.act-as", {CARTS_ACT_AS}),
        ("Carts.Act-As carts.act-as,carts.read", USER_SCOPES),
        ("admin.read admin.write", set()),
        ("admin.write carts.read", {CARTS_READ}),
    ],
)
async def test_the_scopes_are_a_users_unless_the_token_names_some_of_ours(
    scope: Any, scopes: set[str], tokens: Tokens
) -> None:
    assert (await tokens.verify(token(scope=scope))).scopes == scopes


async def test_a_token_expires_after_the_leeway(tokens: Tokens, clock: Clock) -> None:
    text = token(expires_in=60)
    await tokens.verify(text)
    clock.now = NOW + 60 + LEEWAY - 0.001
    assert tokens.find(text)
    assert (await tokens.verify(text)).expiry == NOW + 60 + LEEWAY
    clock.now = NOW + 60 + LEEWAY
    assert tokens.find(text) is None
    with pytest.raises(TokenExpired):
        await tokens.verify(text)


async def test_a_token_that_is_expired_and_wrong_in_another_way_is_not_called_expired(tokens: Tokens) -> None:
    for changes in ({"iss": "https://other.example"}, {"key": OTHER.renamed("ES256-1")}, {"user_id": "a/b"}):
        with pytest.raises(TokenInvalid):
            await tokens.verify(token(exp=NOW - 60, iat=NOW - 90, **changes))
