"""Resource names and their keys."""

from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cart_grpc.names import SLICES, cart_key, find_cart, find_item, find_user, is_id, item_id_of, user_key

ITEM_ID = "0123456789abcdef" * 2
TRICKY = st.text(alphabet="ab:=1,2é", max_size=4)
OPTIONS = st.dictionaries(TRICKY, TRICKY, max_size=3)


@pytest.mark.parametrize("text", ["a", "default", "alice@example.com", "a|b", "A:1+2~_.-", "...", "--", "x" * 128])
def test_a_valid_id_is_accepted(text: str) -> None:
    assert is_id(text)


@pytest.mark.parametrize("text", ["", "-", ".", "..", "x" * 129, "a b", "a/b", "a\n", "é", "a\0", "%41", "*"])
def test_an_invalid_id_is_refused(text: str) -> None:
    assert not is_id(text)


def test_a_name_parses_to_the_key_that_it_was_written_from() -> None:
    user = user_key("alice")
    cart = cart_key(user, "default")
    assert find_user(user.name) == user
    assert find_cart(cart.name) == cart
    assert find_item(cart.item_name(ITEM_ID)) == (cart, ITEM_ID)
    assert cart.user == user


@pytest.mark.parametrize(
    "name", ["", "users", "users/", "users/-", "users/a/", "user/a", "users/a/carts/b", "/users/a"]
)
def test_an_invalid_user_name_parses_to_none(name: str) -> None:
    assert find_user(name) is None


@pytest.mark.parametrize(
    "name", ["users/a", "users/a/carts", "users/a/carts/", "users/a/carts/..", "users/-/carts/b", "users/a/carts/b/c"]
)
def test_an_invalid_cart_name_parses_to_none(name: str) -> None:
    assert find_cart(name) is None


@pytest.mark.parametrize(
    "name",
    [
        f"users/a/carts/b/items/{ITEM_ID.upper()}",
        f"users/a/carts/b/items/{ITEM_ID}0",
        f"users/a/carts/b/items/{ITEM_ID}\n",
        f"users/a/carts/b/items/{ITEM_ID}/items/{ITEM_ID}",
        f"users/a/carts/b/{ITEM_ID}",
        "users/a/carts/b/items/",
    ],
)
def test_an_invalid_item_name_parses_to_none(name: str) -> None:
    assert find_item(name) is None


def test_a_users_slice_never_changes() -> None:
    # The keys of stored rows contain it: these are the values of the first release.
    assert [user_key(name).slice for name in ("alice", "bob", "carol")] == [71, 64, 195]


@given(st.text(alphabet="abc123._~@|:+-", min_size=1, max_size=128))
def test_a_slice_is_within_the_number_of_slices(user_id: str) -> None:
    assert 0 <= user_key(user_id).slice < SLICES


@settings(max_examples=1000)
@given(TRICKY, OPTIONS, TRICKY, OPTIONS)
@example("a", {"b": "c"}, "a:b", {"c": ""})
@example("a", {"a:b": "c"}, "a", {"a": "b:c"})
@example("a", {"b": "c", "d": "e"}, "a", {"b": "cd", "e": ""})
@example("1:a", {}, "", {"1": "a"})
@example("a", {"b": ""}, "a", {"": "b"})
@example("a", {"b": "c1:d"}, "a", {"b": "c", "1": "d"})
@example("é", {}, "e", {"́": ""})
def test_two_lines_share_an_item_id_only_if_sku_and_options_are_equal(
    sku: str, options: Mapping[str, str], other_sku: str, other_options: Mapping[str, str]
) -> None:
    same = (sku, options) == (other_sku, other_options)
    assert (item_id_of(sku, options) == item_id_of(other_sku, other_options)) is same


@given(OPTIONS)
def test_the_order_of_options_does_not_matter(options: dict[str, str]) -> None:
    assert item_id_of("a", options) == item_id_of("a", dict(reversed(options.items())))


def test_an_item_id_is_valid_in_an_item_name() -> None:
    assert find_item(f"users/a/carts/b/items/{item_id_of('sku', {'size': 'L'})}") is not None
