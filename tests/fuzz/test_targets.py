"""The targets find no fault in a few hundred inputs, and find faults that are planted."""

import base64
import json
import random
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cart_grpc import names
from cart_grpc.authentication import keys, tokens
from cart_grpc.authentication.caller import NOBODY, SCOPES
from cart_grpc.authentication.services import Services
from cart_grpc.reservation_api import wire
from cart_grpc.rpc import fields, pages, permissions, requests
from cart_grpc.rpc.methods import METHODS as ROWS
from tests.fuzz.requests import METHODS
from tests.fuzz.tape import Tape
from tests.fuzz.targets import CHECKS, QUERIES, SEEDS, TARGETS, Target
from tests.rpc.right import descriptor_of, path_of

INPUTS = 200


def inputs(target: str, count: int) -> list[bytes]:
    """Random inputs, the same in each run."""
    rng = random.Random(zlib.crc32(target.encode()))
    return [rng.randbytes(rng.randrange(300)) for _ in range(count)]


@pytest.mark.parametrize("target", TARGETS)
def test_valid_and_random_inputs_find_no_fault(target: str) -> None:
    run_all(TARGETS[target], [*SEEDS.get(target, ()), *inputs(target, INPUTS)])


@pytest.mark.parametrize("target", TARGETS)
def test_small_inputs_find_no_fault(target: str) -> None:
    @settings(max_examples=50, derandomize=True, database=None, deadline=None)
    @given(st.binary(max_size=200))
    def run(data: bytes) -> None:
        TARGETS[target](data)

    run()


def test_every_method_and_every_list_is_fuzzed() -> None:
    assert {path_of(method) for method in CHECKS} == {
        f"/{service}/{row.name}" for service, rows in ROWS.items() for row in rows
    }
    assert set(CHECKS) == set(METHODS)
    lists = {method for method in METHODS if "page_token" in descriptor_of(method).input_type.fields_by_name}
    assert set(QUERIES) == lists


@pytest.mark.parametrize(
    ("target", "place", "name", "defect"),
    [
        ("request", names, "find_cart", lambda _: names.cart_key(names.user_key("alice"), "other")),
        ("request", requests, "_fingerprint", lambda request: 1 / len(request.etag)),
        ("request", fields.Fields, "check", lambda _: None),
        ("page-token", pages, "is_time", lambda value: isinstance(value, int)),
        ("page-token", pages, "decode_token", lambda token: json.loads(base64.urlsafe_b64decode(token))),
        ("grpc-answer", wire, "_check_granted", lambda *_: None),
        ("http-answer", wire, "clean_reason", lambda text: text),
        ("basic-answer", wire, "clean_text", lambda text: text),
        ("request", permissions, "CARTS_ACT_AS", "carts.read"),
        ("token", tokens, "_to_scopes", lambda _: SCOPES),
        ("token", tokens, "_digest", lambda _: b""),
        ("key-set", keys, "_find_algorithm", lambda entry: entry["alg"]),
        ("certificate", Services, "caller_of", lambda *_: NOBODY),
        ("batch-answer", wire, "clean_retry_after", lambda us: us),
    ],
)
def test_a_planted_defect_is_found(
    target: str, place: Any, name: str, defect: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, defect)
    with pytest.raises(Exception):  # noqa: B017, PT011 - each defect shows in its own way
        run_all(TARGETS[target], inputs(target, 8 * INPUTS))


def run_all(target: Target, data: list[bytes]) -> None:
    for each in data:
        target(each)


def test_a_tape_reads_its_choices_from_its_bytes_and_then_makes_the_first_one() -> None:
    tape = Tape(b"\2\1\0")
    assert [tape.choice("abcd") for _ in range(5)] == ["c", "b", "a", "a", "a"]
    assert tape.random() > 0.99
    assert tape.sample(range(9), 3) == Tape(b"").sample(range(9), 3)
