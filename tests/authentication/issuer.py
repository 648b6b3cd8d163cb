"""An issuer of tokens for tests: its keys, its key set as JSON or as a file, and tokens with any header and claims."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import get_algorithm_by_name
from jwt.utils import base64url_encode

ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "cart.example"
ABSENT: Final = object()
"""In place of the value of a claim or a header parameter: it is left out."""


@dataclass(frozen=True)
class SigningKey:
    """A key pair of an issuer. `key` is a private key of the library `cryptography`."""

    kid: str
    algorithm: str
    key: Any

    def to_jwk(self, **changes: Any) -> dict[str, Any]:
        """Return the public key as an entry of a key set, with `changes`."""
        public = get_algorithm_by_name(self.algorithm).to_jwk(self.key.public_key(), as_dict=True)
        return _change({**public, "kid": self.kid, "alg": self.algorithm, "use": "sig"}, changes)

    def to_private_jwk(self) -> dict[str, Any]:
        """Return the private key as an entry of a key set."""
        return {**get_algorithm_by_name(self.algorithm).to_jwk(self.key, as_dict=True), "kid": self.kid}

    def sign(self, signed: bytes) -> bytes:
        """Return the signature."""
        return get_algorithm_by_name(self.algorithm).sign(signed, self.key)

    def renamed(self, kid: str) -> "SigningKey":
        """Return the same key under another `kid`."""
        return replace(self, kid=kid)


@cache
def signing_key(algorithm: str, number: int = 1) -> SigningKey:
    """Return key `number` for `algorithm`, such as RS256. It is made once in each process; RSA keys take a while."""
    return SigningKey(f"{algorithm}-{number}", algorithm, _make(algorithm))


def to_key_set(*keys: SigningKey | Mapping[str, Any]) -> str:
    """Return a key set (RFC 7517) as JSON. A mapping is an entry as it is."""
    return json.dumps({"keys": [key.to_jwk() if isinstance(key, SigningKey) else key for key in keys]})


def write_key_set(file: Path, *keys: SigningKey | Mapping[str, Any]) -> Path:
    """Write a key set to `file` and return it."""
    file.write_text(to_key_set(*keys))
    return file


def make_token(
    user_id: Any = "alice",
    *,
    key: SigningKey | None = None,
    expires_in: float = 600,
    now: float | None = None,
    header: Mapping[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Return a token of ISSUER for AUDIENCE, valid unless told otherwise, signed with ES256 by default.

    `header` and `claims` replace what a valid token has. `now` is the time in seconds at which the token is issued.
    """
    key = key or signing_key("ES256")
    issue_time = int(time.time() if now is None else now)
    valid = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user_id,
        "iat": issue_time,
        "exp": issue_time + expires_in,
    }
    payload = json.dumps(_change(valid, claims)).encode()
    return seal(_change({"typ": "JWT", "alg": key.algorithm, "kid": key.kid}, header or {}), payload, key)


def seal(header: Mapping[str, Any] | bytes, payload: bytes, key: SigningKey) -> str:
    """Return `header` and `payload` in the compact form, signed with `key`, whatever they say."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    signed = base64url_encode(content) + b"." + base64url_encode(payload)
    return (signed + b"." + base64url_encode(key.sign(signed))).decode()


def _change(valid: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**valid, **changes}.items() if value is not ABSENT}


def _make(algorithm: str) -> Any:
    match algorithm:
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ES384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ES512":
            return ec.generate_private_key(ec.SECP521R1())
    return rsa.generate_private_key(65_537, 2048)
