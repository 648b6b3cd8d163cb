"""The reference of settings: every setting with its meaning, default and range."""

import re
from collections.abc import Sequence
from typing import Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from cart_grpc.settings import PREFIX, Settings, is_duration, variable_of
from cart_grpc.units import format_duration, to_us

PAGE: Final = "reference/settings.md"
_INTRODUCTION: Final = """\
# Settings

This page lists every setting with its meaning, default and range.

Settings come from the environment (`CART_*`), then `.env`, then a TOML file that `CART_CONFIG_FILE` names, with names
in lower case and without the prefix. The first source wins. A misspelt name is an error. `cart-grpc config` prints the
values that a process would use. A duration is written as `90`, `90s`, `1h30m` or `PT15M`.
"""
# Each setting belongs to the first group with a prefix of its name.
_GROUPS: Final[Sequence[tuple[str, Sequence[str]]]] = (
    (
        "Ports",
        ("listen", "service_listen", "admin_listen", "health_listen", "metrics_listen", "allow_anyone", "reflection"),
    ),
    ("Drop-in for demo shops", ("compat",)),
    ("Certificates and services", ("tls_", "client_ca_file", "services")),
    ("Tokens", ("token_",)),
    ("Database", ("database_",)),
    (
        "Reservation API",
        ("reservation_url", "reservation_ca", "reservation_cert", "reservation_key", "reservation_tok"),
    ),
    ("Log", ("log_", "slow_call")),
    ("Calls and stopping", ("call_timeout", "lame_duck", "shutdown_grace", "max_calls", "max_waiting", "write_queue")),
    ("Limits of carts and users", ("max_",)),
    ("Holds and carts", ("hold_ttl", "cart_ttl")),
    ("Retention", ("reply_ret", "reservation_ret", "cart_ret", "checkout_ret", "marker_ret", "housekeeping")),
    ("Reconciling", ("reservation_",)),
    ("Others", ("",)),
)


def page() -> str:
    """Return the page in Markdown."""
    groups: dict[str, list[str]] = {title: [] for title, _ in _GROUPS}
    for name in Settings.model_fields:
        groups[next(title for title, prefixes in _GROUPS if name.startswith(tuple(prefixes)))].append(name)
    parts = [_INTRODUCTION]
    for title, names in groups.items():
        if not names:
            continue
        parts.append(f"## {title}\n")
        parts += [_section(name, Settings.model_fields[name]) for name in names]
    return "\n".join(parts)


def _section(name: str, field: FieldInfo) -> str:
    variable = variable_of(name)
    default = Settings().shown()[variable]
    facts = [f"**Default:** `{default}`" if default else "**Default:** empty", *_range(name, field)]
    text = re.sub(rf"\b{PREFIX}[A-Z_]+", lambda match: f"[`{match[0]}`](#{match[0].lower()})", field.description or "")
    text = text.replace("true: ", "`true`: ")
    return f"### {variable}\n\n{text[0].upper()}{text[1:]}.\n\n{' · '.join(facts)}\n"


def _range(name: str, field: FieldInfo) -> list[str]:
    """The values that are allowed, if a choice or numbers restrict them."""
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return [f"**Values:** {', '.join(f'`{value}`' for value in get_args(annotation))}"]
    if annotation is bool:
        return ["**Values:** `true`, `false`"]
    bounds = [
        f"{words} {_show(name, getattr(bound, bound_name))}"
        for kind, bound_name, words in ((Ge, "ge", "at least"), (Gt, "gt", "more than"), (Le, "le", "at most"))
        for bound in field.metadata
        if isinstance(bound, kind)
    ]
    return [f"**Range:** {', '.join(bounds)}"] if bounds else []


def _show(name: str, number: Any) -> str:
    return format_duration(to_us(number)) if is_duration(name) and number else f"{number:,}"
