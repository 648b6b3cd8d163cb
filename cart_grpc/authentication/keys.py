"""The keys in a JSON Web Key Set (RFC 7517) that may sign tokens here."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from jwt import PyJWK
from jwt.exceptions import PyJWTError

MIN_RSA_BITS: Final = 2048
# To build a key takes up to 0.1 ms of the event loop. Large providers publish about twenty.
MAX_KEYS: Final = 100
# The algorithm of a key without `alg`, by its type and curve (RFC 7518, RFC 8037).
_IMPLIED: Final = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("EC", "P-384"): "ES384",
    ("EC", "P-521"): "ES512",
    ("OKP", "Ed25519"): "EdDSA",
}
# The members of a public key. Nothing else goes to the library: no certificate chain, and no URL of one.
_PUBLIC: Final = ("kty", "crv", "x", "y", "n", "e")
# The members of a private or a symmetric key.
_SECRET: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class KeysNotLoaded(Exception):
    """There is no key set: it cannot be read, or it is not one. The text has nothing of its content."""


class _NotUsed(Exception):
    """The key cannot verify tokens here. `is_ordinary`: such keys are in the sets of many issuers."""

    def __init__(self, why: str, *, is_ordinary: bool = False) -> None:
        super().__init__(why)
        self.is_ordinary = is_ordinary


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, the one algorithm for which it may be used, and its `kid`, None if it has none.

    `material` is the key itself as JSON. Keys are equal if all three are.
    """

    kid: str | None
    algorithm: str
    material: str
    jwk: PyJWK = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Unused:
    """A key that is not used: its place in the set, from 1, and why."""

    place: int
    why: str
    is_ordinary: bool

    def __str__(self) -> str:
        return f"key {self.place} is not used: {self.why}"


def parse_keys(content: bytes, algorithms: Collection[str]) -> tuple[Sequence[Key], Sequence[Unused]]:
    """Return the keys of a set that may verify tokens signed with `algorithms`, and those that may not.

    Raises KeysNotLoaded if `content` is not a key set. A bad key does not spoil the others.
    """
    try:
        entries = json.loads(content)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise KeysNotLoaded("it is not a JSON Web Key Set: a JSON object with the array `keys`")
    if len(entries) > MAX_KEYS:
        raise KeysNotLoaded(f"it has more than {MAX_KEYS} keys")
    keys: list[Key] = []
    unused = []
    for place, entry in enumerate(entries, 1):
        try:
            _add(keys, _to_key(entry, algorithms))
        except _NotUsed as error:
            unused.append(Unused(place, str(error), error.is_ordinary))
    return keys, unused


def _add(keys: list[Key], key: Key) -> None:
    if key in keys:
        return
    if key.kid is not None and any(key.kid == other.kid for other in keys):
        raise _NotUsed("a key before it has the same `kid`")
    keys.append(key)


def _to_key(entry: Any, algorithms: Collection[str]) -> Key:
    if not isinstance(entry, dict):
        raise _NotUsed("it is not a JSON object")
    # First: the other checks must not say how a secret is malformed.
    if not _SECRET.isdisjoint(entry):
        raise _NotUsed("it is a secret key; every reader of the set could sign tokens with it, so replace the key")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise _NotUsed("its `kid` is not a string")
    _check_use(entry)
    algorithm = _find_algorithm(entry)
    if algorithm not in algorithms:
        raise _NotUsed("its algorithm is not allowed here", is_ordinary=True)
    public = {name: entry[name] for name in _PUBLIC if name in entry}
    return Key(kid, algorithm, json.dumps(public), _to_jwk(public, algorithm))


def _check_use(entry: Mapping[str, Any]) -> None:
    if entry.get("use", "sig") != "sig":
        raise _NotUsed("its `use` is not sig", is_ordinary=True)
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise _NotUsed("its `key_ops` do not have verify", is_ordinary=True)


def _find_algorithm(entry: Mapping[str, Any]) -> str:
    """Return the key's `alg`, or the one that its type and curve imply, or "" if they imply none."""
    algorithm = entry.get("alg")
    if algorithm is None:
        kind = entry.get("kty"), entry.get("crv")
        algorithm = next((implied for known, implied in _IMPLIED.items() if known == kind), "")
    return algorithm if isinstance(algorithm, str) else ""


def _to_jwk(public: Mapping[str, Any], algorithm: str) -> PyJWK:
    try:
        jwk = PyJWK(dict(public), algorithm)
        # It also checks the curve, which the constructor does not.
        jwk.Algorithm.prepare_key(jwk.key)
    except (PyJWTError, UnsupportedAlgorithm, TypeError, ValueError):
        # The text of the error may have parts of the key.
        raise _NotUsed(f"it is not a valid public key for {algorithm}") from None
    if public["kty"] == "RSA" and jwk.key.key_size < MIN_RSA_BITS:
        raise _NotUsed(f"it has fewer than {MIN_RSA_BITS} bits")
    return jwk
