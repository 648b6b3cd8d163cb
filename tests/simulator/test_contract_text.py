"""The rules of the contract have the same words in the proto, in the OpenAPI document and in the documentation."""

import re
from collections.abc import Sequence
from pathlib import Path

from cart_grpc.probe.reservation_v1 import RESERVATION_V1
from cart_grpc.protocol.reservation import MAX_TTL_US, MIN_TTL_US

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "protos/cartgrpc/reservation/v1"
PAGE = (ROOT / "docs/reservation-api.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d) \| (.+) \| (.+) \|$", re.MULTILINE)
LIST = re.compile(r"^(?://)? *1\. .*?(?=^(?://)?\n)", re.MULTILINE | re.DOTALL)


def rules_of(name: str) -> Sequence[str]:
    """The numbered rules in a file of the contract."""
    found = LIST.search((FOLDER / name).read_text(encoding="utf-8"))
    assert found
    text = " ".join(line.removeprefix("//").strip() for line in found[0].splitlines())
    return [each.strip() for each in re.split(r"(?:^|(?<= ))[1-9]\. ", text)[1:]]


def test_the_rules_have_the_same_words_in_every_place() -> None:
    rules = [words for _, words, _ in ROW.findall(PAGE)]
    assert rules_of("reservation.proto") == rules_of("reservation.openapi.yaml") == rules
    assert [number for number, _, _ in ROW.findall(PAGE)] == [f"{number}" for number in range(1, 9)]


def test_the_page_has_the_consequences_that_the_probe_reports() -> None:
    consequences = {number: consequence for number, _, consequence in ROW.findall(PAGE)}
    assert consequences == {rule: text for rule, text in RESERVATION_V1.consequences.items() if rule.isdigit()}


def test_the_rules_have_the_bounds_of_a_ttl_that_the_simulator_and_the_probe_use() -> None:
    shortest, longest = MIN_TTL_US // 1_000_000, MAX_TTL_US // 3_600_000_000
    assert f"a ttl of {shortest} second to {longest} hours" in rules_of("reservation.proto")[4]
