"""Whatever a caller sends as a token, the answer is a caller or Unauthenticated, at once, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jwt.utils import base64url_encode

from cart_grpc.authentication.caller import Caller
from cart_grpc.authentication.key_set import KeySet
from cart_grpc.authentication.key_sources import FileSource
from cart_grpc.authentication.refusals import Unauthenticated
from cart_grpc.authentication.tokens import Tokens
from cart_grpc.names import is_id
from tests.authentication.conftest import ALGORITHMS, NOW, Clock, to_tokens
from tests.authentication.issuer import AUDIENCE, ISSUER, make_token, seal, signing_key, write_key_set

ES256 = signing_key("ES256")
HEADER = {"alg": "ES256", "kid": ES256.kid}
VALID = make_token(now=NOW)
TEXTS = st.text(alphabet="aZ09-_.=~/ é\0\n\ud800", max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from([ISSUER, AUDIENCE, "alice"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
CLAIMS = st.sampled_from(["iss", "aud", "sub", "exp", "iat", "nbf", "scope", "jti"])
PARAMETERS = st.sampled_from(["alg", "kid", "crit", "b64", "typ", "cty", "jku", "jwk", "x5u", "x5c", "zip", "enc"])


@pytest.fixture(scope="module")
async def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    file = write_key_set(tmp_path_factory.mktemp("keys") / "keys.json", *map(signing_key, ALGORITHMS))
    clock = Clock()
    keys = KeySet(FileSource(Path(file)), ALGORITHMS, clock=clock)
    await keys.load()
    return to_tokens(keys, clock)


def verify(tokens: Tokens, text: str) -> Caller | None:
    """Return the caller, or None for Unauthenticated. The clock stands still, so nothing may wait for a load."""
    found = tokens.find(text)
    try:
        tokens.verify(text).send(None)
    except StopIteration as end:
        caller: Caller = end.value
        assert found in (None, caller)
        assert is_id(caller.user_id)
        assert tokens.find(text) == caller
        return caller
    except Unauthenticated:
        assert found is None
        assert tokens.find(text) is None
        return None
    raise AssertionError("it waits")


@given(TEXTS | st.binary(max_size=200).map(lambda content: content.decode("latin-1")))
def test_any_text(tokens: Tokens, text: str) -> None:
    assert verify(tokens, text) is None


@given(st.integers(0, len(VALID)), st.integers(0, 5), TEXTS)
def test_any_change_of_a_valid_token(tokens: Tokens, start: int, length: int, text: str) -> None:
    changed = VALID[:start] + text + VALID[start + length :]
    caller = verify(tokens, changed)
    # Some issuers pad the parts with "=", so the library allows it.
    assert caller is None or changed.rstrip("=") == VALID


@given(st.tuples(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=80)))
def test_any_three_parts(tokens: Tokens, parts: tuple[bytes, ...]) -> None:
    assert verify(tokens, ".".join(base64url_encode(part).decode() for part in parts)) is None


@given(st.dictionaries(PARAMETERS, JSON, max_size=3))
def test_any_header_of_a_signed_token(tokens: Tokens, header: dict[str, Any]) -> None:
    caller = verify(tokens, make_token(now=NOW, header=header))
    assert caller is None or not {"crit", "b64"} & set(header)


@given(st.dictionaries(CLAIMS, JSON, max_size=4))
def test_any_claims_of_the_issuer(tokens: Tokens, claims: dict[str, Any]) -> None:
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW, "exp": NOW + 60} | claims
    caller = verify(tokens, seal(HEADER, json.dumps(payload).encode(), ES256))
    assert caller is None or caller.user_id == payload["sub"]


@given(st.binary(max_size=60))
def test_any_payload_of_the_issuer(tokens: Tokens, payload: bytes) -> None:
    assert verify(tokens, seal(HEADER, payload, ES256)) is None
