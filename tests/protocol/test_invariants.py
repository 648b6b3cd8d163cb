"""Every state within the bounds satisfies all invariants."""

import pytest

from tests.protocol.configurations import DEEP, SHALLOW
from tests.protocol.explorer import Explorer
from tests.protocol.model import CartModel
from tests.protocol.states import Bounds


# `least` is a lower bound of the number of states: fewer mean that the exploration lost transitions.
@pytest.mark.parametrize(("bounds", "least"), SHALLOW.values(), ids=SHALLOW)
def test_every_invariant_holds_in_every_state(bounds: Bounds, least: int) -> None:
    assert Explorer(CartModel(bounds)).explore() >= least


@pytest.mark.night
@pytest.mark.parametrize(("bounds", "least"), DEEP.values(), ids=DEEP)
def test_every_invariant_holds_within_larger_bounds(bounds: Bounds, least: int) -> None:
    assert Explorer(CartModel(bounds)).explore() >= least
