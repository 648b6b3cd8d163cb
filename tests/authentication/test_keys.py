"""Which keys of a key set are used, for which algorithm, and that a bad key does no harm."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.utils import base64url_encode

from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.key_sources import FileSource
from cart_grpc.authentication.keys import MAX_KEYS, KeysNotLoaded, parse_keys
from tests.authentication.conftest import ALGORITHMS
from tests.authentication.issuer import ABSENT, SigningKey, signing_key, to_key_set, write_key_set

EC, RSA, ED = signing_key("ES256"), signing_key("RS256"), signing_key("EdDSA")
ALL = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SECRET = base64url_encode(b"hunter2-hunter2-hunter2-hunter2-").decode()

UNUSED: dict[str, Any] = {
    "null": None,
    "a string": "RSA",
    "a list": [],
    "empty": {},
    "symmetric": {"kty": "oct", "k": SECRET, "alg": "HS256", "kid": "a"},
    "symmetric, with alg RS256": {"kty": "oct", "k": SECRET, "alg": "RS256"},
    "symmetric, malformed": {"kty": "oct", "k": 7},
    "private EC": EC.to_private_jwk(),
    "private RSA": RSA.to_private_jwk(),
    "private Ed25519": ED.to_private_jwk(),
    "public RSA, with a part of the private one": RSA.to_jwk(dp="AQAB"),
    "kid is a number": EC.to_jwk(kid=1),
    "kid is a list": EC.to_jwk(kid=["a"]),
    "use is enc": RSA.to_jwk(use="enc"),
    "use is null": RSA.to_jwk(use=None),
    "key_ops without verify": EC.to_jwk(key_ops=["sign"]),
    "key_ops is a string": EC.to_jwk(key_ops="verify"),
    "key_ops is an object": EC.to_jwk(key_ops={"verify": 1}),
    "alg is another kind's": EC.to_jwk(alg="RS256"),
    "alg is another curve's": EC.to_jwk(alg="ES384"),
    "alg is none": EC.to_jwk(alg="none"),
    "alg is HS256, with an RSA key": RSA.to_jwk(alg="HS256"),
    "alg is for encryption": RSA.to_jwk(alg="RSA-OAEP"),
    "alg is a list": EC.to_jwk(alg=["ES256"]),
    "alg is empty": EC.to_jwk(alg=""),
    "kty is missing": EC.to_jwk(kty=ABSENT),
    "kty is unknown": EC.to_jwk(kty="ec", alg=ABSENT),
    "kty is a list": EC.to_jwk(kty=["EC"], alg=ABSENT),
    "crv is missing": EC.to_jwk(crv=ABSENT),
    "crv is unknown": EC.to_jwk(crv="P-999", alg=ABSENT),
    "crv is an object": EC.to_jwk(crv={}, alg=ABSENT),
    "crv is secp256k1": SigningKey("a", "ES256K", ec.generate_private_key(ec.SECP256K1())).to_jwk(),
    "crv is Ed448 without alg": SigningKey("a", "EdDSA", ed448.Ed448PrivateKey.generate()).to_jwk(alg=ABSENT),
    "x is missing": EC.to_jwk(x=ABSENT),
    "x is a number": EC.to_jwk(x=5),
    "x is not base64url": EC.to_jwk(x="!"),
    "x is too short": EC.to_jwk(x="AAAA"),
    "the point is not on the curve": EC.to_jwk(x=base64url_encode(bytes(31) + b"\1").decode()),
    "x of Ed25519 is too short": ED.to_jwk(x="AAAA"),
    "n is empty": RSA.to_jwk(n=""),
    "n is a list": RSA.to_jwk(n=[1]),
    "e is 1": RSA.to_jwk(e="AQ"),
    "e is even": RSA.to_jwk(e="Ag"),
    "e is missing": RSA.to_jwk(e=ABSENT),
    "RSA of 1024 bits": SigningKey("short", "RS256", rsa.generate_private_key(65_537, 1024)).to_jwk(),  # noqa: S505 - refused
}


@pytest.mark.parametrize("entry", UNUSED.values(), ids=UNUSED)
def test_a_bad_key_is_not_used_and_the_others_are(entry: Any) -> None:
    keys, unused = parse_keys(to_key_set(RSA, entry, ED).encode(), ALL)
    assert [key.kid for key in keys] == [RSA.kid, ED.kid]
    assert [key.place for key in unused] == [2]


@pytest.mark.parametrize("entry", UNUSED.values(), ids=UNUSED)
def test_the_reason_says_nothing_of_the_key(entry: Any) -> None:
    (unused,) = parse_keys(to_key_set(entry).encode(), ALL)[1]
    values = entry.values() if isinstance(entry, dict) else ()
    assert not [value for value in values if isinstance(value, str) and len(value) > 9 and value in str(unused)]


async def test_no_secret_key_gets_into_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    entries = [UNUSED[name] for name in ("symmetric", "private EC", "private RSA", "private Ed25519")]
    await KeySet(FileSource(write_key_set(tmp_path / "keys.json", *entries)), ALGORITHMS).load()
    assert caplog.text.count("it is a secret key") == len(entries)
    secrets = [entry[name] for entry in entries for name in ("k", "d", "p", "q", "x", "n") if name in entry]
    assert not [secret for secret in secrets if secret in caplog.text]


@pytest.mark.parametrize(
    ("entry", "algorithm"),
    [
        (RSA.to_jwk(alg=ABSENT), "RS256"),
        (RSA.to_jwk(alg="PS512"), "PS512"),
        (EC.to_jwk(alg=ABSENT), "ES256"),
        (signing_key("ES384").to_jwk(alg=ABSENT), "ES384"),
        (signing_key("ES512").to_jwk(alg=ABSENT), "ES512"),
        (ED.to_jwk(alg=ABSENT), "EdDSA"),
        (EC.to_jwk(use=ABSENT, key_ops=["verify", "sign"]), "ES256"),
        (EC.to_jwk(x5c=["MIIB"], x5t="a", x5u="https://127.0.0.1:1/"), "ES256"),
    ],
)
def test_a_key_has_the_algorithm_that_it_names_or_implies(entry: Any, algorithm: str) -> None:
    (key,) = parse_keys(to_key_set(entry).encode(), ALL)[0]
    assert key.algorithm == algorithm
    assert not parse_keys(to_key_set(entry).encode(), set(ALL) - {algorithm})[0]


def test_of_two_keys_with_one_kid_the_first_is_used() -> None:
    keys, unused = parse_keys(to_key_set(EC, signing_key("ES256", 2).renamed(EC.kid), EC).encode(), ALL)
    assert [json.loads(key.material)["x"] for key in keys] == [EC.to_jwk()["x"]]
    assert [key.place for key in unused] == [2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b'{"keys": [',
        b"[" * 100_000,
        b'{"keys": [' + b"9" * 5_000 + b"]}",
        b"\xff\xfe\xfd",
        b"<html></html>",
        json.dumps(EC.to_jwk()).encode(),
        json.dumps({"keys": [EC.to_jwk()] * (MAX_KEYS + 1)}).encode(),
    ],
)
def test_what_is_not_a_key_set_is_refused(content: bytes) -> None:
    with pytest.raises(KeysNotLoaded):
        parse_keys(content, ALL)


TEXTS = st.text(alphabet="AQgw_-=! é\0", max_size=90)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg", "use", "key_ops", "kid", "d", "k", "x5c"])
WORDS = st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "P-521", "Ed25519", "Ed448", "AQAB", "AA==", *ALL])


@given(
    st.sampled_from([EC, RSA, ED]),
    st.dictionaries(NAMES, JSON | WORDS, max_size=3),
    st.sets(NAMES, max_size=1),
)
def test_whatever_a_key_says_the_others_are_used(key: SigningKey, changes: dict[str, Any], absent: set[str]) -> None:
    entry = key.to_jwk(**changes | dict.fromkeys(absent, ABSENT))
    keys, unused = parse_keys(to_key_set(entry, EC.renamed("good")).encode(), ALL)
    assert [found.kid for found in keys][-1] == "good"
    assert len(keys) + len(unused) == 2
