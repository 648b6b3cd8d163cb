"""The protocol keeps its promises in every world within the bounds."""

import pytest

from tests.protocol.configurations import DEEP, SHALLOW
from tests.protocol.explorer import Explorer
from tests.protocol.model import CartModel
from tests.protocol.worlds import Bounds


# `least` is about how many worlds there are: fewer means that the exploration has lost something.
@pytest.mark.parametrize(("bounds", "least"), SHALLOW.values(), ids=SHALLOW)
def test_every_promise_holds_in_every_world(bounds: Bounds, least: int) -> None:
    assert Explorer(CartModel(bounds)).explore() >= least


@pytest.mark.night
@pytest.mark.parametrize(("bounds", "least"), DEEP.values(), ids=DEEP)
def test_every_promise_holds_in_many_more_worlds(bounds: Bounds, least: int) -> None:
    assert Explorer(CartModel(bounds)).explore() >= least
