"""The reference of errors: every reason with its code, its meaning, and what a caller does about it."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from cart_grpc.authentication import refusals as identity_refusals
from cart_grpc.authentication.refusals import Fault
from cart_grpc.carts import checkout_refusals
from cart_grpc.carts import refusals as cart_refusals
from cart_grpc.carts.refusals import CallRefused, Unavailable
from cart_grpc.rpc import health, status
from cart_grpc.units import format_duration
from tools.markdown import definitions
from tools.protos import File
from tools.reference_names import PAGES

PAGE: Final = "reference/errors.md"
TEXTS: Final = Path("docs/reference/errors.toml")
_MODULES: Final = (cart_refusals, checkout_refusals, identity_refusals, health)
_INTRODUCTION: Final = """\
# Errors

This page lists every reason with which a call can fail, and what to do about it.

Every error is a `google.rpc.Status`. Its `ErrorInfo` has the domain `cartgrpc.v1`, a `reason`, and `metadata` with
every variable part of the message. Programs decide by the code and the reason, and show the message to people.
`BadRequest`, `PreconditionFailure`, `QuotaFailure` and `ResourceInfo` name the field, item, limit or resource at fault.
`RetryInfo` says when to try again.

The [clients](../clients/python.md) repeat a call if that is safe and useful. A mutation is safe to repeat with the same
`request_id`. An outage of the Reservation API never fails a call: it shows in the state of an item.
"""
_FIELD_REASONS: Final = """\
## Reasons of invalid fields

Each violation in `BadRequest` has one of these reasons, the path of the field, and a description of its valid values.
"""
_FAULTS: Final = """\
## Faults of tokens

`fault` in the metadata of [`TOKEN_INVALID`](#token_invalid) is the rule that the token breaks.
"""
_CHECKOUT_REASONS: Final = """\
## Reasons of checkouts

A checkout that the server or an operator ended has one of these in `reason`.
"""
_RESERVATION_REASONS: Final = """\
## Reasons of reservations

The `reason` of a reservation that is `REJECTED` comes from your Reservation API, such as `OUT_OF_STOCK`. This service
adds one of its own.
"""
# First the errors that a caller can correct, then those that pass with time.
_CODES: Final = {
    "INVALID_ARGUMENT": "The request is wrong. The same request fails again.",
    "UNAUTHENTICATED": "The caller has not proved who it is. Nothing was looked up.",
    "PERMISSION_DENIED": "The caller may not do this. Nothing was looked up or validated.",
    "NOT_FOUND": "The request names a resource that does not exist.",
    "ALREADY_EXISTS": "The request creates a resource that exists.",
    "FAILED_PRECONDITION": "The request is valid, but the state does not allow it. Nothing was changed.",
    "ABORTED": "Another change came first. Nothing was changed.",
    "RESOURCE_EXHAUSTED": "A limit is reached. Nothing was changed.",
    "DEADLINE_EXCEEDED": "The call took too long.",
    "DATA_LOSS": "The server cannot read its data. Nothing was changed.",
    "UNAVAILABLE": "The request is valid; try again later.",
    "INTERNAL": "A bug.",
}


def texts(root: Path) -> Mapping[str, Any]:
    """Return the texts about errors in `root`, the project's folder."""
    return tomllib.loads((root / TEXTS).read_text(encoding="utf-8"))


def refusals() -> dict[str, type[CallRefused]]:
    """Return every kind of refusal that a caller can get, by its reason."""
    kinds = (kind for module in _MODULES for kind in vars(module).values() if isinstance(kind, type))
    return {kind.reason: kind for kind in kinds if issubclass(kind, CallRefused) and kind.reason != CallRefused.reason}


def methods_of(reason: str, files: Iterable[File]) -> list[tuple[str, str]]:
    """Return the methods whose comments name the reason: the name of the service, and of the method."""
    return [
        (service.name, method.name)
        for file in files
        for service in file.services
        for method in service.methods
        if reason in _reasons_in(method.comment, {each.name: each.comment for each in service.methods})
    ]


def page(root: Path, files: Iterable[File]) -> str:
    """Return the page in Markdown."""
    files, known, kinds = list(files), texts(root), refusals()
    parts = [_INTRODUCTION]
    for code, sentence in _CODES.items():
        parts.append(f"## {code}\n\n{sentence}\n")
        for reason, text in known["reasons"].items():
            kind = kinds.get(reason)
            if code_of(kind) == code:
                parts.append(_section(reason, kind, text, methods_of(reason, files)))
    parts += [_FIELD_REASONS, definitions(known["fields"])]
    parts += [_FAULTS, definitions({fault.name: f"{fault.value[0].upper()}{fault.value[1:]}." for fault in Fault})]
    parts += [_CHECKOUT_REASONS, definitions(known["checkouts"])]
    parts += [_RESERVATION_REASONS, definitions(known["reservations"])]
    return "\n".join(parts)


def code_of(kind: type[CallRefused] | None) -> str:
    """Return the name of the code of a kind of refusal. A bug is no refusal."""
    if kind is None:
        return "INTERNAL"
    return next(code for known, code in status.CODES if issubclass(kind, known)).name


def _section(
    reason: str, kind: type[CallRefused] | None, text: Mapping[str, Any], methods: list[tuple[str, str]]
) -> str:
    facts = []
    if text["metadata"]:
        facts.append(f"**Metadata:** {', '.join(f'`{key}`' for key in text['metadata'])}")
    if kind and issubclass(kind, Unavailable):
        facts.append(f"**RetryInfo:** {format_duration(kind.retry_after_us)}")
    if "methods" in text:
        facts.append(f"**Methods:** {text['methods']}")
    else:
        links = (
            f"[{name if service == 'CartService' else f'{service}.{name}'}]({PAGES[service]}#{name.lower()})"
            for service, name in sorted(methods, key=lambda method: list(PAGES).index(method[0]))
        )
        facts.append(f"**Methods:** {', '.join(links)}")
    shown = "\n".join(f"- {fact}" for fact in facts)
    return f"### {reason}\n\n{text['meaning']}\n\n**What to do:** {text['advice']}\n\n{shown}\n"


def _reasons_in(comment: str, comments: Mapping[str, str]) -> set[str]:
    """The words in capitals of a method's comment, and of the methods whose errors it has, too."""
    words = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", comment))
    for other in re.findall(r"those of (\w+)", comment):
        words |= _reasons_in(comments.get(other, ""), comments)
    return words
