"""Text from outside is shown on terminals and in logs, but it controls neither."""

import io
import logging
import sys

import pytest

from cart_grpc import process, terminal
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


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Receives all that is logged."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.root, "handlers", [])
    process.start_log("INFO")
    return stream


def test_a_log_record_is_one_line_whatever_its_arguments_contain(logged: io.StringIO) -> None:
    logging.getLogger("x").warning("an operator paused it: %s", "a\n2026-01-01 ERROR forged\x1b[2J\u202e")
    [line] = logged.getvalue().splitlines()
    assert line.endswith(r"WARNING x an operator paused it: a\n2026-01-01 ERROR forged\x1b[2J\u202e")


def test_the_text_of_an_exception_cannot_look_like_a_log_record(logged: io.StringIO) -> None:
    logging.getLogger("x").error("unexpected error", exc_info=ValueError("a\n2026-01-01 ERROR forged\x1b[2J"))
    first, *others = logged.getvalue().splitlines()
    assert first.endswith("ERROR x unexpected error")
    assert all(line.startswith("  ") for line in others)
    assert others[-1] == r"  2026-01-01 ERROR forged\x1b[2J"


def test_what_is_said_has_no_lines_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("one\u200b", "two\nforged")
    assert capsys.readouterr().out == "one\\u200b\ntwo\\nforged\n"


def test_a_complaint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.complain("a\nb\u200b")
    assert capsys.readouterr().err == "cart-grpc: a\\nb\\u200b\n"
