"""The form of what the documents show: data can be read, settings, commands and options exist."""

import argparse
import ast
import json
import re
import shlex
from collections.abc import Iterator
from importlib import import_module

import pytest
import yaml

from cart_grpc.carts.checkout_refusals import CartEmpty, CartFrozen
from cart_grpc.carts.refusals import AlreadyExists, CartClosed, CartNotFound
from cart_grpc.cli import cart_connection, program
from cart_grpc.compat.demos import VARIABLES
from cart_grpc.configuration import CONFIG_FILE
from cart_grpc.logs import events
from cart_grpc.settings import Settings
from cart_grpc.store import database_url
from tests.documents.pages import PAGES, Fence, fences, read
from tests.postgres import PostgresServer

EVENTS = {event.name for event in vars(events).values() if isinstance(event, events.Event)}
LOG_LINE = re.compile(r"(?:\S+Z )?(?:INFO|WARNING|ERROR) (\w+) ")
POSTGRESQL_SETTING = re.compile(r"^(\w+) = ")


def is_checked(fence: Fence) -> bool:
    """Whether a test in this file checks the fence as a whole."""
    return bool(
        fence.language in ("json", "yaml", "sql")
        or (fence.language == "python" and fence.page == "docs/upgrades.md")
        or (not fence.language and (LOG_LINE.match(fence.text) or POSTGRESQL_SETTING.match(fence.text)))
        or fence.text.startswith("postgresql://")
    )


def checked(*languages: str) -> list[Fence]:
    return [fence for page in PAGES for fence in fences(page) if is_checked(fence) and fence.language in languages]


def test_json_and_yaml_can_be_read() -> None:
    for fence in checked("json"):
        assert json.loads(fence.text)
    for fence in checked("yaml"):
        assert yaml.safe_load(fence.text)


def test_sql_runs(postgres: PostgresServer) -> None:
    postgres.create_database("documents", template="template_cart")
    for fence in checked("sql"):
        postgres.run(*fence.text.split(";"), database="documents")


def test_the_settings_of_postgresql_are_its_own(postgres: PostgresServer) -> None:
    named = {name for fence in checked("") for name in re.findall(r"^(\w+) = ", fence.text, re.MULTILINE)}
    assert "autovacuum_naptime" in named
    known = postgres.run("SELECT string_agg(name, ' ') FROM pg_settings").split()
    assert named <= set(known)


def test_the_events_in_lines_of_the_log_are_events() -> None:
    named = [match[1] for fence in checked("") for line in fence.text.splitlines() if (match := LOG_LINE.match(line))]
    named += [line["event"] for fence in checked("json") if "event" in (line := json.loads(fence.text))]
    assert "call_refused" in named
    assert set(named) <= EVENTS


def test_the_urls_of_databases_are_valid() -> None:
    urls = [line for fence in checked("") for line in fence.text.splitlines() if line.startswith("postgresql://")]
    assert urls
    for url in urls:
        # It refuses unknown parameters, and what libpq would not accept.
        database_url.parse(url, {})


def test_python_compiles_and_its_imports_exist() -> None:
    for fence in checked("python"):
        for node in ast.walk(ast.parse(fence.text)):
            if isinstance(node, ast.ImportFrom):
                assert node.module
                module = import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names)


@pytest.mark.parametrize("page", PAGES)
def test_settings_exist(page: str) -> None:
    known = {f"CART_{name.upper()}" for name in Settings.model_fields} | {CONFIG_FILE} | VARIABLES
    # Reasons of errors begin in the same way.
    known |= {refused.reason for refused in (CartNotFound, AlreadyExists, CartClosed, CartFrozen, CartEmpty)}
    known |= {variable for name, variable in vars(cart_connection).items() if name.endswith("_VARIABLE")}
    known |= {f"CARTGRPC_{name.upper()}" for name in ("ca_file", "cert_file", "key_file", "token_file")}
    assert set(re.findall(r"\bCART(?:GRPC)?_[A-Z0-9_]*[A-Z0-9]\b(?!\*|_)", read(page))) <= known


def shown_commands(page: str) -> Iterator[list[str]]:
    """The words of each `cart-grpc …` on a page: in the text, and in commands."""
    text = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    yield from (code.split() for code in re.findall(r"`(cart-grpc (?!listens)[^`]+)`", text))
    for fence in fences(page, "console", "sh"):
        for line in "\n".join(fence.commands).replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" # ")[0].partition(" 2>&1")[0])
            if "cart-grpc" in words[:-1]:
                yield words[words.index("cart-grpc") :]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    for words in shown_commands(page):
        name, *rest = words[1:]
        if name == "--version":
            continue
        parser = program._parser(name)
        for word in (name, *rest):
            nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            if not nested or word.startswith(("-", "…")):
                break
            assert word in nested[0].choices, f"{' '.join(words)}: no command {word}"
            parser = nested[0].choices[word]
        options = {word.partition("=")[0] for word in rest if re.match(r"--\w", word)}
        assert options <= set(parser._option_string_actions), " ".join(words)
