"""`cart-grpc cart` against a real server: its output and its exit status."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from cart_grpc.cli import cart_connection
from cart_grpc.cli import program as cli
from tests.client.shop import Shop

Run = Callable[..., "Said"]


class Said:
    """The exit status and the output of a command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def messages(self) -> list[Any]:
        """The JSON objects, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def user() -> str:
    """A user of this test's own."""
    return f"u{uuid.uuid4().hex}"


@pytest.fixture
def run(shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `cart-grpc cart …` at the shop."""
    monkeypatch.setenv(cart_connection.ADDRESS_VARIABLE, shop.address)

    def run(*arguments: str) -> Said:
        try:
            status = cli.main(["cart", *arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        return Said(status, *capsys.readouterr())

    return run


def test_a_cart_is_filled_changed_and_shown_as_a_table(run: Run, user: str) -> None:
    added = run("add", user, "coffee", "2", "--price", "12.34EUR", "--wait", "10s")
    assert (added.status, added.err) == (0, "")
    assert added.out.splitlines()[1].split()[:6] == ["coffee", "2", "12.34", "EUR", "RESERVED", "2"]
    run("add", user, "mug", "--option", "color=red", "--label", "gift=yes")
    assert run("set", user, "mug", "--option", "color=red", "--quantity", "3", "--price", "0.50 EUR").status == 0
    run("remove", user, "coffee")
    lines = run("show", user).out.splitlines()
    assert lines[0] == f"users/{user}/carts/default  ACTIVE"
    assert lines[2].startswith("mug {color=red}")
    assert "0.50 EUR" in lines[2]
    assert lines[-1] == "1 item, 3 units, subtotal 1.50 EUR"
    assert run("set", user, "mug", "--option", "color=red", "--price", "none").out.splitlines()[1].split()[3] == "-"
    assert run("clear", user).out == "removed 1 item\n"


def test_json_has_one_message_on_each_line(run: Run, user: str) -> None:
    (added,) = run("add", f"{user}/list", "tea", "--json", "--request-id", "r-1").messages
    assert added["item"]["sku"] == "tea"
    assert run("add", f"{user}/list", "tea", "--json", "--request-id", "r-1").messages == [added]
    run("add", f"users/{user}/carts/other", "tea")
    names = [cart["name"] for cart in run("list", user, "--json").messages]
    assert names == [f"users/{user}/carts/list", f"users/{user}/carts/other"]
    (cart,) = run("show", f"{user}/list", "--json").messages
    assert cart["items"][0]["quantity"] == 1


def test_a_sale_from_the_guest_s_cart_to_the_order(run: Run, user: str) -> None:
    guest = f"{user}-guest"
    run("add", guest, "coffee", "2", "--price", "10.00EUR", "--wait", "10s")
    run("add", user, "coffee", "1", "--price", "9.00EUR", "--wait", "10s")
    merged = run("merge", user, guest, "--wait", "10s")
    assert "coffee" in merged.out
    assert "PRICE_REPLACED" in merged.out
    assert run("checkout", "begin", user, "--expect", "1.00EUR").status == 1
    begun = run("checkout", "begin", user, "--window", "10m", "--wait", "10s")
    assert begun.out.splitlines()[0].endswith("OPEN  ready")
    refused = run("add", user, "tea")
    assert (refused.status, "FAILED_PRECONDITION/CART_FROZEN" in refused.err) == (1, True)
    completed = run("checkout", "complete", user, "order-1", "--wait", "10s")
    assert completed.out.splitlines()[0].endswith("COMPLETED")
    (listed,) = run("checkout", "list", user, "--json").messages
    assert listed["order_reference"] == "order-1"
    assert "COMMITTED" in run("checkout", "show", listed["name"]).out
    assert run("show", user).out.splitlines()[0].endswith(listed["name"])


def test_a_checkout_is_cancelled_by_its_cart(run: Run, user: str) -> None:
    run("add", user, "coffee", "--wait", "10s")
    run("checkout", "begin", user)
    assert run("checkout", "cancel", user).out.splitlines()[0].endswith("CANCELLED")
    refused = run("checkout", "cancel", user)
    assert (refused.status, refused.err) == (2, f"cart-grpc: users/{user}/carts/default has no checkout\n")


def test_watch_prints_each_state_until_the_cart_ends(shop: Shop, run: Run, user: str) -> None:
    run("add", user, "coffee", "--wait", "10s")
    command = [sys.executable, "-m", "cart_grpc", "cart", "watch", user, "--json", "--address", shop.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        assert first["state"] == "STATE_ACTIVE"
        run("checkout", "begin", user, "--wait", "10s")
        run("checkout", "complete", user, "order-1")
        rest = [json.loads(line)["state"] for line in watching.stdout]
        assert rest[-1] == "STATE_CHECKED_OUT"
        assert watching.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "a b"), "the user 'a b' must be"),
        (("show", "users/a"), "the cart 'users/a' must be users/USER/carts/CART"),
        (("show", "a", "--address", "nowhere"), "the address 'nowhere' must be HOST:PORT"),
        (("add", "a", "tea", "--price", "1.234EUR"), "too many decimals: EUR has 2"),
        (("add", "a", "tea", "--price", "1.5JPY"), "too many decimals: JPY has 0"),
        (("add", "a", "tea", "--option", "red"), "must be KEY=VALUE"),
        (("add", "a", "tea", "--wait", "soon"), "'soon' must be"),
        (("set", "a", "tea"), "set needs a quantity, a unit_price or labels to set"),
        (("sell", "a"), "invalid choice: 'sell'"),
    ],
)
def test_wrong_use_says_what_is_right_and_exits_with_2(run: Run, arguments: tuple[str, ...], message: str) -> None:
    said = run(*arguments)
    assert said.status == 2
    assert message in said.err


def test_a_refusal_and_a_missing_server_exit_with_1(run: Run, user: str, unused_address: str) -> None:
    refused = run("show", user)
    assert (refused.status, "NOT_FOUND/CART_NOT_FOUND" in refused.err) == (1, True)
    missing = run("show", user, "--address", unused_address, "--timeout", "1s")
    assert missing.status == 1
    assert missing.err.startswith(f"cart-grpc: no server answers at {unused_address}; start one with `cart-grpc dev`")


def test_a_change_without_an_answer_says_how_to_repeat_it(run: Run, user: str, unused_address: str) -> None:
    lost = run("add", user, "tea", "--address", unused_address, "--timeout", "1s", "--request-id", "r-7")
    assert lost.status == 1
    assert lost.err.splitlines()[1:] == [
        "cart-grpc: the change may have been made; repeat the command with --request-id r-7"
    ]


def test_an_item_that_is_not_in_the_cart_is_named_as_the_caller_named_it(run: Run, user: str) -> None:
    run("add", user, "tea")
    for missing in (run("set", user, "mug", "--option", "color=red", "--quantity", "2"), run("remove", user, "mug")):
        assert missing.status == 1
        assert missing.err.startswith(f"cart-grpc: {user} has no item mug")


def test_a_table_for_programs_has_no_spaces_at_the_end_of_a_line(run: Run, user: str) -> None:
    lines = run("add", user, "tea").out.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []


def test_text_of_others_cannot_change_the_terminal(run: Run, user: str) -> None:
    assert run("add", user, "tea", "--option", "note=\u202egreen [bold]x[/bold]").err == ""
    out = run("show", user).out
    assert "\u202e" not in out
    assert "\\u202egreen [bold]x[/bold]" in out


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("cart-grpc cart ch", {"checkout "}),
        ("cart-grpc cart checkout co", {"complete "}),
        ("cart-grpc rese", {"reservations "}),
    ],
)
def test_a_shell_completes_commands(line: str, completions: set[str], tmp_path: Any) -> None:
    answer = tmp_path / "answer"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-m", "cart_grpc"], env=environment, check=True, timeout=60)
    assert set(answer.read_text().split("\n")) == completions
