"""The reference of the API: services, methods, messages and fields, as the protos describe them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from cart_grpc.rpc.permissions import PERMISSIONS
from tools.markdown import anchor_of, define
from tools.protos import Enum, Field, File, Message, Method, Service
from tools.reference_names import DOWNLOADS, FILES, OPENAPI, PAGES

_RESOURCES: Final = f"{FILES['cartgrpc/v1/cart.proto']}.md"
_TITLES: Final = {"resources": "Resources"}
_INTRODUCTION: Final = """\
# API

This page lists the services of cart_grpc and their methods. The pages below it have every message and field.

The package of the protos is `cartgrpc.v1`. `CART_REFLECTION` says whether a server describes its API by gRPC
reflection, v1 and v1alpha. The rules for `request_id`, `etag`, `max_wait` and errors are the same for all methods:
[CartService](cart-service.md). Values have [limits](limits.md), and calls fail with one of these [errors](errors.md).
"""
_BEHAVIOUR: Final = {
    "REQUIRED": "required",
    "OPTIONAL": "optional",
    "OUTPUT_ONLY": "output only",
    "IMMUTABLE": "immutable",
    "IDENTIFIER": "identifier",
}


def pages(files: Mapping[str, File], reasons: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each page: its path and its Markdown. Words that are a reason or a method become links."""
    places = _places(files)
    yield "reference/api.md", _overview(files)
    for path, stem in FILES.items():
        file = files[path]
        links = {
            "see the comment at the top of this file": "see [the top of this page](#cartservice)",
            "reservation.openapi.yaml in the same directory": f"[reservation.openapi.yaml](../{DOWNLOADS}/{OPENAPI})",
        }
        links |= {each.name: f"[{each.name}](#{anchor_of(each.name)})" for one in file.services for each in one.methods}
        if path.startswith("cartgrpc/v1/"):
            links |= {reason: f"[`{reason}`](errors.md#{reason.lower()})" for reason in reasons}
        yield f"reference/{stem}.md", _Page(file, files, stem, _linker(links), places).text()


def _overview(files: Mapping[str, File]) -> str:
    parts = [_INTRODUCTION]
    for file in (files[path] for path in FILES):
        for service in file.services:
            parts.append(f"## {service.name}\n\n`{service.full_name}`. {service.comment}\n")
            page = PAGES[service.name]
            parts.append(
                "\n\n".join(
                    define(f"[{method.name}]({page}#{anchor_of(method.name)})", _first_sentence(method.comment))
                    for method in service.methods
                )
                + "\n"
            )
    parts.append(
        f"## Resources\n\nThe methods have [carts, items, reservations and checkouts]({_RESOURCES}) in common.\n"
    )
    return "\n".join(parts)


class _Page:
    """The page of one file. Requests and responses stand with their methods, the other messages by themselves."""

    def __init__(
        self,
        file: File,
        files: Mapping[str, File],
        stem: str,
        link: Callable[[str], str],
        places: Mapping[str, str],
    ) -> None:
        self._file = file
        self._messages = {message.full_name: message for each in files.values() for message in each.messages}
        self._stem = stem
        self._link = link
        self._places = places

    def text(self) -> str:
        file, name = self._file, self._file.services[0].name if self._file.services else ""
        title = name or _TITLES[self._stem]
        # The comment begins with the name of the service, or describes the resources.
        about = file.comment.removeprefix(f"{name}: ")
        parts = [f"# {title}\n", self._link(f"{about[0].upper()}{about[1:]}") + "\n"]
        parts.append(f"Download [`{file.path}`](../{DOWNLOADS}/protos/{file.path}).\n")
        for service in file.services:
            parts.append(f"## Methods\n\nThe full name of the service is `{service.full_name}`.\n")
            parts += [self._method(service, method) for method in service.methods]
        own = [message for message in file.messages if message.full_name in self._places]
        enums = list(file.enums)
        if own or enums:
            parts.append("## Messages\n")
        for message in own:
            parts.append(f"### {message.name}\n\n{self._link(message.comment)}\n")
            parts.append(self._fields(message))
            mine = [enum for enum in enums if enum.name.startswith(f"{message.name}.")]
            parts += [self._enum(enum) for enum in mine]
            enums = [enum for enum in enums if enum not in mine]
        parts += [self._enum(enum) for enum in enums]
        return "\n".join(parts)

    def _method(self, service: Service, method: Method) -> str:
        stream = "stream " if method.streams else ""
        request, response = self._messages[method.request], self._messages[method.response]
        comment = re.sub(r"^Errors: ", "**Errors:** ", self._link(method.comment), flags=re.MULTILINE)
        parts = [
            f"### {method.name}\n",
            f"```proto\nrpc {method.name}({request.name}) returns ({stream}{response.name})\n```\n",
            f"{comment}\n",
        ]
        scope = PERMISSIONS.get(service.full_name, {}).get(method.name)
        if scope:
            parts.append(f"**Scope**, on a port with identities: `{scope}`\n")
        return "\n".join(
            [*parts, f"**{request.name}**\n", self._fields(request), f"**{response.name}**\n", self._fields(response)]
        )

    def _fields(self, message: Message) -> str:
        if not message.fields:
            return "No fields.\n"
        return "\n\n".join(define(self._term(field), self._link(field.comment)) for field in message.fields) + "\n"

    def _term(self, field: Field) -> str:
        kind = f"`{field.kind}`"
        place = self._places.get(field.type_name)
        if place:
            kind = f"[{kind}]({place.removeprefix(f'{self._stem}.md')})"
        words = [_BEHAVIOUR[word] for word in field.behaviour]
        if field.oneof:
            words.append(f"one of {field.oneof}")
        return " ".join([f"**`{field.name}`**", kind, *(f"*{word}*" for word in words)])

    def _enum(self, enum: Enum) -> str:
        values = (define(f"**`{value.name}`** `{value.number}`", self._link(value.comment)) for value in enum.values)
        return f"#### {enum.name}\n\n{self._link(enum.comment)}\n\n" + "\n\n".join(values) + "\n"


def _places(files: Mapping[str, File]) -> dict[str, str]:
    """The page and the anchor of each message and enum with a section of its own, by full name."""
    methods = [method for file in files.values() for service in file.services for method in service.methods]
    shown_with_methods = {name for method in methods for name in (method.request, method.response)}
    found = {}
    for path, stem in FILES.items():
        package = path.rpartition("/")[0].replace("/", ".")
        for message in files[path].messages:
            if message.full_name not in shown_with_methods:
                found[message.full_name] = f"{stem}.md#{anchor_of(message.name)}"
        for enum in files[path].enums:
            found[f"{package}.{enum.name}"] = f"{stem}.md#{anchor_of(enum.name)}"
    return found


def _linker(links: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces the words in `links`, except in code."""
    # A comment writes a code and a reason as CODE / REASON, which may have the same name.
    words = re.compile(rf"`[^`]*`|[A-Z_]+ / |\b({'|'.join(map(re.escape, links))})\b")

    def link(text: str) -> str:
        return words.sub(lambda match: links.get(match[0], match[0]), text)

    return link


def _first_sentence(comment: str) -> str:
    return re.split(r"(?<=\.)\s", comment, maxsplit=1)[0].replace("\n", " ")
