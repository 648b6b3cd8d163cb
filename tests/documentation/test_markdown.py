"""The rewriting of links, and the anchors of headings."""

from tools.markdown import anchors, rewrite


def link(text: str, target: str) -> tuple[str, str] | None:
    other = {"a.md": "b.md", "gone": ""}.get(target)
    return None if other is None else (text, other)


def code(text: str) -> str | None:
    return "ref.md#x" if text == "CART_X" else None


def test_links_and_known_words_are_rewritten_outside_code_and_headings() -> None:
    source = (
        "# A `CART_X`\n[a](a.md) [`CART_X`](a.md) ![i](a.md) [`x` y](gone) [c](c.md)\n"
        "`CART_X` and `[a](a.md)`\n```\n[a](a.md) `CART_X`\n```\n[cli[x]](a.md)\n"
    )
    assert rewrite(source, link, code) == (
        "# A `CART_X`\n[a](b.md) [`CART_X`](b.md) ![i](b.md) `x` y [c](c.md)\n"
        "[`CART_X`](ref.md#x) and `[a](a.md)`\n```\n[a](a.md) `CART_X`\n```\n[cli[x]](b.md)\n"
    )


def test_anchors_are_those_of_a_forge() -> None:
    text = "# Who may call?\n## `CART_X` and y\n## Who may call\n```\n# no\n```\n### A [link](x.md), too\n"
    assert anchors(text) == {"who-may-call", "cart_x-and-y", "who-may-call-1", "a-link-too"}
