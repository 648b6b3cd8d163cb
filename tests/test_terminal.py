"""Text from outside is shown on terminals, but it does not control them."""

import io
import sys

import pytest

from cart_grpc import terminal
from cart_grpc.terminal import escape, to_table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("espresso-beans", "espresso-beans"),
        ("お茶 ñ é 🛒", "お茶 ñ é 🛒"),
        (r"C:\new", r"C:\new"),
        ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
        ("\x1b[31mred\x7f\x9b", r"\x1b[31mred\x7f\x9b"),
        ("\u202eabc\u2066\u2069\u200e\u200f\u061c", r"\u202eabc\u2066\u2069\u200e\u200f\u061c"),
        ("a\u200bb\u200c\u200d\u2060\ufeff\u00ad", r"a\u200bb\u200c\u200d\u2060\ufeff\xad"),
        ("\u034f\u3164\u115f\uffa0\u2800\ufe0f\U000e0101", r"\u034f\u3164\u115f\uffa0\u2800\ufe0f\U000e0101"),
        ("a\u00a0b\u2028\u2029\u3000", r"a\xa0b\u2028\u2029\u3000"),
        ("\U000e0041\ue000\u0378\udcff", r"\U000e0041\ue000\u0378\udcff"),
    ],
)
def test_invisible_characters_are_escaped_and_others_are_not(text: str, shown: str) -> None:
    assert escape(text) == shown
    # Escaped text has nothing left to escape.
    assert escape(shown) == shown


def test_columns_stay_aligned_beside_wide_combining_and_invisible_characters() -> None:
    rows = [("SKU", "QTY"), ("お茶", "1"), ("te\u0301", "2"), ("a\u200bb", "3"), ("🛒", "4")]
    assert to_table(rows) == ["SKU       QTY", "お茶      1", "te\u0301        2", r"a\u200bb  3", "🛒        4"]


def test_columns_stay_aligned_if_the_encoding_lacks_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert to_table([("é", "1"), ("お", "2")]) == ["é       1", r"\u304a  2"]


def test_what_is_said_has_no_lines_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("one\u200b", "two\nforged")
    assert capsys.readouterr().out == "one\\u200b\ntwo\\nforged\n"


def test_a_complaint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.complain("a\nb\u200b")
    assert capsys.readouterr().err == "cart-grpc: a\\nb\\u200b\n"
