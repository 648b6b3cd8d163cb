"""The reference has every reason, setting, method and field of the code, and says what to do about each error."""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

import pytest

from cart_grpc.authentication.refusals import Fault
from cart_grpc.carts import model
from cart_grpc.carts.checkout_refusals import Unreserved
from cart_grpc.carts.refusals import CallRefused, FieldViolation
from cart_grpc.names import CheckoutKey
from cart_grpc.settings import Settings, variable_of
from tests.documentation import ROOT
from tools import protos, reference_api, reference_errors, reference_settings

FILES = protos.read(ROOT / "protos")
TEXTS = reference_errors.texts(ROOT)
REFUSALS = reference_errors.refusals()
PAGES = dict(reference_api.pages(FILES, TEXTS["reasons"]))
MONEY = model.Money("EUR", 1)
CHECKOUT = model.Checkout(**dict.fromkeys(model.Checkout._fields, 1))._replace(  # type: ignore[arg-type]
    key=CheckoutKey(0, "alice", "c"), state=model.CheckoutState.OPEN, reason="HOLD_LOST"
)
ARGUMENTS = {
    str: "x",
    int: 1,
    float: 1.0,
    bool: True,
    Fault: Fault.SEVERAL,
    model.Money: MONEY,
    model.Checkout: CHECKOUT,
    Sequence[FieldViolation]: [FieldViolation("f", "R", "d")],
    Sequence[Unreserved]: [Unreserved("i", "PENDING", "")],
}


def reasons_in_the_code() -> Iterator[str]:
    """The reasons of all classes of refusals, wherever they are."""
    for file in (ROOT / "cart_grpc").rglob("*.py"):
        if file.is_relative_to(ROOT / "cart_grpc" / "simulator"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "reason":
                    yield ast.literal_eval(part.value)


def field_reasons_in_the_code() -> set[str]:
    """The reasons of invalid fields: the second argument of each call of `fault` in the code."""
    return {
        node.args[1].value
        for file in (ROOT / "cart_grpc" / "rpc").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "fault"
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    }


def refusal_of(kind: type[CallRefused]) -> CallRefused:
    """A refusal of this kind, with all the metadata that it can have."""
    init = kind.__init__
    if init is CallRefused.__init__:
        return kind("text")
    hints: dict[str, Any] = get_type_hints(init)
    names = [name for name in inspect.signature(init).parameters if name not in ("self", "message", "metadata")]
    values: dict[str, Any] = {name: ARGUMENTS[hints[name]] for name in names}
    return kind(**values)


def test_every_reason_has_advice() -> None:
    assert set(TEXTS["reasons"]) == {*reasons_in_the_code(), "INTERNAL"}
    assert set(REFUSALS) == set(TEXTS["reasons"]) - {"INTERNAL"}


@pytest.mark.parametrize("reason", REFUSALS)
def test_the_reference_has_the_metadata_of_a_reason(reason: str) -> None:
    assert sorted(refusal_of(REFUSALS[reason]).metadata) == sorted(TEXTS["reasons"][reason]["metadata"])


@pytest.mark.parametrize("reason", TEXTS["reasons"])
def test_a_reason_says_which_methods_have_it(reason: str) -> None:
    named = reference_errors.methods_of(reason, FILES.values())
    assert named or "methods" in TEXTS["reasons"][reason]


def test_every_reason_of_an_invalid_field_is_explained() -> None:
    assert field_reasons_in_the_code() | {"REQUEST_ID_REUSED"} == set(TEXTS["fields"])


def test_the_page_of_errors_has_every_reason_below_its_code() -> None:
    page = reference_errors.page(ROOT, FILES.values())
    for reason, kind in REFUSALS.items():
        [before] = page.split(f"\n### {reason}\n")[:-1]
        assert before.rpartition("\n## ")[2].partition("\n")[0] == reference_errors.code_of(kind)


def test_the_methods_of_a_reason_include_those_of_another_method() -> None:
    assert ("CartService", "BatchAddItems") in reference_errors.methods_of("CURRENCY_MISMATCH", FILES.values())


def test_the_page_of_settings_has_every_setting_with_its_default() -> None:
    page = reference_settings.page()
    for variable, default in Settings().shown().items():
        section = page.split(f"\n### {variable}\n")[1].partition("\n#")[0]
        assert f"**Default:** {f'`{default}`' if default else 'empty'}" in section
    assert page.count("\n### ") == len(Settings.model_fields)
    assert "\n## Others\n" not in page, "give the new setting a group"
    ttl = page.split(f"\n### {variable_of('hold_ttl')}\n")[1]
    assert ttl.splitlines()[3] == "**Default:** `15m` · **Range:** at least 10s, at most 1d"


@pytest.mark.parametrize("path", sorted(FILES))
def test_the_pages_of_the_api_have_every_method_field_and_value(path: str) -> None:
    file = FILES[path]
    text = "".join(PAGES.values())
    for service in file.services:
        for method in service.methods:
            assert method.comment
            assert f"\n### {method.name}\n" in text
    for message in file.messages:
        assert message.comment
        for field in message.fields:
            assert re.search(rf"\n\*\*`{field.name}`\*\* \[?`{re.escape(field.kind)}`", text)
            assert field.comment
    for enum in file.enums:
        for value in enum.values:
            assert f"**`{value.name}`** `{value.number}`" in text


def test_a_field_has_its_type_its_behaviour_and_its_comment() -> None:
    section = PAGES["reference/cart-service.md"].split("\n**AddItemRequest**\n")[1]
    assert section.startswith(
        "\n**`parent`** `string` *required*\n: The cart: `users/{user}/carts/{cart}`.\n\n"
        "**`item`** [`Item`](resources.md#item) *required*\n: The item to add;"
    )


def test_a_reason_in_a_comment_is_a_link() -> None:
    assert "NOT_FOUND / [`CART_NOT_FOUND`](errors.md#cart_not_found)" in PAGES["reference/cart-service.md"]
