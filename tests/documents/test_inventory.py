"""All code in the documents runs, is checked, or has a reason in the inventory why not."""

import re

import pytest

from tests.documents import ROOT, inventory, test_forms
from tests.documents.pages import PAGES, Fence, fences, read
from tests.documents.test_console import RUN

FENCES = [fence for page in PAGES for fence in fences(page)]


def parts(fence: Fence) -> list[str]:
    """The parts of fenced code that are treated one by one, as the inventory names them."""
    if fence.language in ("console", "sh"):
        return fence.commands
    return [f"```{fence.language}" if fence.language else fence.text]


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: f"{fence.page}:{fence.line}")
def test_all_of_it_is_treated_in_one_way(fence: Fence) -> None:
    assert parts(fence), "it has no command: output alone needs no language"
    for part in parts(fence):
        ways = [
            fence.language in ("console", "sh") and fence.page in RUN and not inventory.find(fence.page, part),
            test_forms.is_checked(fence),
            bool(inventory.find(fence.page, part)),
        ]
        assert ways.count(True) == 1, f"run, checked, in the inventory: {ways}: {part}"


def test_the_inventory_has_no_entry_that_nothing_needs() -> None:
    needed = {entry for fence in FENCES for part in parts(fence) for entry in inventory.find(fence.page, part)}
    assert needed == set(inventory.ELSEWHERE)


def test_the_tests_in_the_inventory_are_there() -> None:
    named = {name for reason in inventory.ELSEWHERE.values() for name in re.findall(r"tests/\S+\.py", reason)}
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_fence_is_found() -> None:
    for page in PAGES:
        assert len(re.findall(r"^ *(?:```|~~~)", read(page), re.MULTILINE)) == 2 * len(fences(page)), page
