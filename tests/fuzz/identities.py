"""The targets about identities: tokens, key sets, and the names in certificates."""

import atexit
import base64
import datetime as dt
import functools
import hmac
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID
from jwt.utils import base64url_decode, base64url_encode

from cart_grpc.authentication.caller import ADMIN_READ, ADMIN_WRITE, CARTS_ACT_AS, NOBODY, SCOPES, USER_SCOPES, Caller
from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.key_sources import FileSource
from cart_grpc.authentication.keys import KeysNotLoaded, parse_keys
from cart_grpc.authentication.refusals import Unauthenticated
from cart_grpc.authentication.services import Services
from cart_grpc.authentication.tokens import Tokens
from cart_grpc.names import is_id
from cart_grpc.rpc import status
from tests.authentication.conftest import ALGORITHMS, LEEWAY, NOW, Clock, to_tokens
from tests.authentication.issuer import AUDIENCE, ISSUER, SigningKey, make_token, seal, signing_key, write_key_set
from tests.fuzz.answers import run
from tests.fuzz.requests import change_bytes
from tests.fuzz.tape import Tape
from tests.reservation_api.fuzz import LEAVES
from tests.rpc.refusal import MAX_METADATA

_CLAIMS: Final = ("iss", "aud", "sub", "exp", "iat", "nbf", "scope", "jti", "client_id")
_PARAMETERS: Final = ("alg", "kid", "crit", "b64", "typ", "jku", "jwk", "x5u", "x5c", "zip", "enc", "p2c")
_MEMBERS: Final = ("kty", "crv", "x", "y", "n", "e", "alg", "use", "key_ops", "kid", "d", "k", "x5c", "oth")
_VALUES: Final = (
    ISSUER, [ISSUER], AUDIENCE, [AUDIENCE, "x"], "alice", "users/alice", "-", "alice\0", {"sub": "alice"},
    NOW, NOW + 60, NOW - 60, -1, 1e308, str(NOW), "carts.act-as carts.read", "admin.write", ["carts.write"],
    ["carts.read", 1], "none", "None", "HS256", "RS256", "ES256", "EdDSA", "RSA", "EC", "OKP", "oct", "P-256", "AQAB",
    "sig", ["verify"], "DEF", *LEAVES,
)  # fmt: skip
# Valid for the next ten minutes. The first is the one that `fuzz_token_text` changes.
VALID: Final = make_token(now=NOW)
_OTHER: Final = signing_key("ES256", 2)


def fuzz_token(data: bytes) -> None:
    """A token with a drawn header, claims and signature: only what the issuer has signed gives an identity."""
    tape = Tape(data)
    key = signing_key(tape.choice(("ES256", "EdDSA", "RS256")))
    header = _vary(tape, {"typ": "JWT", "alg": key.algorithm, "kid": key.kid}, _PARAMETERS)
    valid = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW, "exp": NOW + 60}
    claims = _vary(tape, valid, _CLAIMS)
    payload = json.dumps(claims).encode()
    if tape.randrange(16) == 15:
        payload = change_bytes(tape, payload)
    token, is_signed = _sign(tape, header, payload, key)
    if tape.randrange(16) == 15:
        changed = change_bytes(tape, token.encode()).decode(errors="replace")
        # Padding, and the last bits of the last letter, are no part of the signature.
        is_signed = is_signed and changed.rpartition(".")[0] == token.rpartition(".")[0]
        token = changed
    caller = check_token(token)
    if caller:
        assert is_signed, token
        assert (header["alg"], header.get("kid")) == (key.algorithm, key.kid)
        assert not {"crit", "b64"} & set(header)
        check_claims(json.loads(payload), caller)


def check_claims(claims: Any, caller: Caller) -> None:
    """The claims say what the caller is."""
    assert claims["iss"] == ISSUER
    assert claims["aud"] == AUDIENCE or AUDIENCE in claims["aud"]
    assert claims["sub"] == caller.user_id
    assert claims["iat"] <= NOW + LEEWAY
    assert claims["exp"] > NOW - LEEWAY
    assert claims.get("nbf", 0) <= NOW + LEEWAY
    if CARTS_ACT_AS in caller.scopes:
        scope = claims["scope"]
        assert CARTS_ACT_AS in (scope.split(" ") if isinstance(scope, str) else scope)


def fuzz_token_text(data: bytes) -> None:
    """Any text is a valid token, which only the issuer can make, or is refused."""
    text = data.decode(errors="surrogateescape")
    if check_token(text):
        assert text.rpartition(".")[0] == VALID.rpartition(".")[0]


def check_token(text: str) -> Caller | None:
    """Return the caller, or None for Unauthenticated. The clock stands still, so nothing may wait for a load."""
    tokens = _tokens()
    found = tokens.find(text)
    try:
        tokens.verify(text).send(None)
    except StopIteration as end:
        caller: Caller = end.value
        assert found in (None, caller)
        assert is_id(caller.user_id)
        assert not caller.service
        assert caller.scopes <= SCOPES - {ADMIN_READ, ADMIN_WRITE}
        assert caller.expiry is not None
        assert caller.expiry > NOW
        assert tokens.find(text) == caller
        return caller
    except Unauthenticated as refusal:
        assert found is None
        _check_refusal(refusal, text)
        return None
    raise AssertionError("it waits")


def _check_refusal(refusal: Unauthenticated, text: str) -> None:
    """The refusal fits into a caller's metadata, and nothing of the token is in it."""
    metadata = status.encode(refusal).trailing_metadata or ()
    assert sum(len(key) + len(value) + 32 for key, value in metadata) < MAX_METADATA
    words = [part for part in text.split(".") if len(part) > 8]
    assert not any(word in f"{refusal.message}{refusal.metadata}" for word in words)


def fuzz_key_set(data: bytes) -> None:
    """A key set whose keys are changed: each key that is used is a public one, of an allowed algorithm."""
    tape = Tape(data)
    entries = []
    for _ in range(tape.choice((1, 2, 3))):
        key = signing_key(tape.choice(tuple(ALGORITHMS)))
        jwk = key.to_private_jwk() if tape.randrange(8) == 7 else key.to_jwk()
        entries.append(_vary(tape, jwk, _MEMBERS))
    content = json.dumps({"keys": entries}).encode()
    fuzz_key_set_bytes(change_bytes(tape, content) if tape.randrange(8) == 7 else content)


def fuzz_key_set_bytes(data: bytes) -> None:
    """Any bytes are a key set, or are refused as one."""
    try:
        keys, unused = parse_keys(data, ALGORITHMS)
    except KeysNotLoaded:
        return
    kids = [key.kid for key in keys if key.kid is not None]
    assert len(kids) == len(set(kids))
    for key in keys:
        assert key.algorithm in ALGORITHMS
        assert not {"d", "k", "p", "q"} & set(json.loads(key.material))
        assert key.material not in repr(key.jwk)
    assert all(str(each).isprintable() for each in unused)


SERVICES: Final = {"spiffe://shop.example/web": frozenset({"carts.read"}), "jobs.shop.example": USER_SCOPES}
_SERVICES: Final = Services(SERVICES)
# The tags of a GeneralName (RFC 5280, 4.2.1.6): e-mail, DNS name, URI, IP address, registered id, other name.
_EMAIL, _DNS, _URI, _IP, _OID, _OTHER_NAME = 0x81, 0x82, 0x86, 0x87, 0x88, 0xA0
_CERTIFICATE_KEY: Final = ec.generate_private_key(ec.SECP256R1())


def fuzz_certificate(data: bytes) -> None:
    """Only a certificate with exactly the name of a service, and of its kind, gives its scopes."""
    tape = Tape(data)
    names = [draw_name(tape) for _ in range(tape.choice((1, 0, 2, 3)))]
    extension = der(0x30, b"".join(der(tag, name) for tag, name in names))
    if tape.randrange(8) == 7:
        extension = change_bytes(tape, extension)
    else:
        own = [name for name in SERVICES if (_URI if "://" in name else _DNS, name.encode()) in names]
        expected: frozenset[str] = frozenset().union(*(SERVICES[name] for name in own))
        caller = _SERVICES.caller_of(certificate_with(extension))
        # A certificate with a name that cannot be read identifies nobody.
        assert caller.scopes == expected or (caller == NOBODY and not all(map(is_plain, names))), names
        assert not caller.user_id
        return
    assert _SERVICES.caller_of(certificate_with(extension)).service in ("", *SERVICES)


def draw_name(tape: Tape) -> tuple[int, bytes]:
    """The tag and the content of a name: of a service, or nearly."""
    service = tape.choice(tuple(SERVICES))
    name = service.encode()
    tag = tape.choice((_URI if "://" in service else _DNS,) * 4 + (_URI, _DNS, _EMAIL, _IP, _OID, _OTHER_NAME))
    near = (name.upper(), name + b"\0", name + b"\0.evil", name + b".", b"*" + name[4:], b" " + name, name[1:], b"")
    for _ in range(tape.choice((0, 0, 1, 2))):
        name = tape.choice((change_bytes(tape, name), *near))
    return tag, name


def is_plain(name: tuple[int, bytes]) -> bool:
    """Whether a name can be read."""
    return name[0] in (_URI, _DNS) and name[1].isascii()


def der(tag: int, content: bytes) -> bytes:
    """One element in DER."""
    length = len(content)
    return bytes((tag, *((length,) if length < 128 else (0x82, length >> 8, length & 255)))) + content


def certificate_with(extension: bytes) -> bytes:
    """A certificate, as PEM, whose extension of subject alternative names has this content."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spiffe://shop.example/web")])
    builder = x509.CertificateBuilder(name, name, _CERTIFICATE_KEY.public_key(), 1)
    builder = builder.not_valid_before(dt.datetime(2026, 1, 1)).not_valid_after(dt.datetime(2036, 1, 1))  # noqa: DTZ001
    unread = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, extension)
    signed = builder.add_extension(unread, critical=False).sign(_CERTIFICATE_KEY, hashes.SHA256())
    return signed.public_bytes(Encoding.PEM)


def fuzz_certificate_bytes(data: bytes) -> None:
    """Any bytes as a certificate, in DER."""
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(data) + b"\n-----END CERTIFICATE-----\n"
    assert Services(SERVICES).caller_of(pem).service in ("", *SERVICES)


def _vary(tape: Tape, valid: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The object with some members changed, added or left out."""
    changed = dict(valid)
    for _ in range(tape.choice((0, 1, 1, 2, 4))):
        name = tape.choice((*valid, *names))
        changed[name] = tape.choice(_VALUES)
        if tape.randrange(8) == 7:
            del changed[name]
    return changed


def _sign(tape: Tape, header: dict[str, Any], payload: bytes, key: SigningKey) -> tuple[str, bool]:
    """Return the token, and whether the issuer's key has signed it."""
    token = seal(header, payload, key)
    signed, _, signature = token.rpartition(".")
    match tape.randrange(8):
        case 7:
            return seal(header, payload, _OTHER), False
        case 6:
            return f"{signed}.", False
        case 5:
            # The public key as the secret of HS256.
            public = key.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            signed = seal({**header, "alg": "HS256"}, payload, key).rpartition(".")[0]
            return f"{signed}.{base64url_encode(hmac.digest(public, signed.encode(), 'sha256')).decode()}", False
        case 4:
            raw = base64url_decode(signature)
            return f"{signed}.{base64url_encode(bytes(len(raw))).decode()}", False
    return token, True


@functools.cache
def _tokens() -> Tokens:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    file = write_key_set(Path(folder.name) / "keys.json", *map(signing_key, ALGORITHMS))
    clock = Clock()
    keys = KeySet(FileSource(file), ALGORITHMS, clock=clock)
    run(keys.load())
    return to_tokens(keys, clock)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "token": fuzz_token,
    "token-text": fuzz_token_text,
    "key-set": fuzz_key_set,
    "key-set-bytes": fuzz_key_set_bytes,
    "certificate": fuzz_certificate,
    "certificate-bytes": fuzz_certificate_bytes,
}
SEEDS: Final[dict[str, Sequence[bytes]]] = {
    "token-text": [VALID.encode()],
    "key-set-bytes": [json.dumps({"keys": [signing_key(name).to_jwk()]}).encode() for name in ALGORITHMS],
    "certificate-bytes": [
        x509.load_pem_x509_certificate(
            certificate_with(
                der(0x30, b"".join(der(_URI if "://" in name else _DNS, name.encode()) for name in SERVICES))
            )
        ).public_bytes(Encoding.DER)
    ],
}
