"""Reads the settings from their sources.

Highest precedence first: environment variables (`CART_*`), the file `.env`, the TOML file named by CART_CONFIG_FILE
(its keys are in lower case and without the prefix), the defaults.

Other programs use names that begin with CART_, too. So an unknown variable is an error only if it is a setting's name
with one or two letters wrong; otherwise it is a warning. The TOML file is ours, and an unknown name in it is an error.

pydantic-settings is not used. It ignores unknown names, a missing TOML file and a name without a value in `.env`, so
our checks have to read every source anyway, and merging the sources is then one line. Importing it costs each start
70 ms of CPU.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cart_grpc.compat import demos
from cart_grpc.logs import events
from cart_grpc.logs.log import Log
from cart_grpc.setting_types import is_token_or_key
from cart_grpc.settings import PREFIX, Settings, is_duration, variable_of
from cart_grpc.units import format_duration, to_us

log = Log(__name__)
CONFIG_FILE: Final = "CART_CONFIG_FILE"
# Variables that Kubernetes adds to every container for a Service whose name begins with "cart".
_SERVICE_LINK: Final = re.compile(r"CART_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
# A URL, a connection string or a query may contain a password, also in a setting that needs another value.
_MAY_BE_SECRET: Final = re.compile(r"[@?=&#%\\]|//|pass")
_BOUNDS: Final = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
# Up to this many wrong letters, an unknown variable is a setting that was misspelt.
_MISSPELT: Final = 2


class SettingsError(Exception):
    """A setting is unknown or has a wrong value. The text is one line: it names the setting and the valid values."""


def warn_of_ignored(text: str) -> None:
    """Log that a variable is ignored, as `text` says."""
    log(events.SETTING_IGNORED, "%s", text)


def load(
    environ: Mapping[str, str] = os.environ, directory: Path = Path(), warn: Callable[[str], None] = warn_of_ignored
) -> Settings:
    """Read all sources; `.env` and a relative CART_CONFIG_FILE are looked up in `directory`.

    Calls `warn` with a line for each variable that is ignored. Raises SettingsError.
    """
    dotenv = _read_dotenv(directory / ".env")
    config_file = environ.get(CONFIG_FILE) or dotenv.get(CONFIG_FILE)
    ignored: list[tuple[str, str]] = []
    values = {
        **(_read_toml(directory, config_file) if config_file else {}),
        **_from_variables(dotenv, ".env", ignored),
        **_from_variables(environ, "the environment", ignored),
    }
    for variable, text in ignored:
        if not (values.get("compat") and variable in demos.VARIABLES):
            warn(f"ignored: {text}")
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error.errors(include_url=False)[0])) from None
    port = demos.find_port({**dotenv, **environ})
    return _with_port(settings, port, warn) if settings.compat and port and "listen" not in values else settings


def _with_port(settings: Settings, port: int, warn: Callable[[str], None]) -> Settings:
    """Return the settings with the port of a demo's container: on all interfaces, if that is safe or wanted.

    Else on loopback: a demo's variables must neither prevent the start nor let strangers in.
    """
    if settings.token_keys or settings.allow_anyone_to_be_any_user:
        return settings.with_changes(listen=f"0.0.0.0:{port}")
    warn(
        f"{demos.PORT}={port} is used on 127.0.0.1 only, because every caller could be any user; for all interfaces, "
        "set CART_TOKEN_KEYS, or CART_ALLOW_ANYONE_TO_BE_ANY_USER=true"
    )
    return settings.with_changes(listen=f"127.0.0.1:{port}")


def _from_variables(variables: Mapping[str, str], source: str, ignored: list[tuple[str, str]]) -> dict[str, str]:
    """Return the settings among `variables`. Raises SettingsError if the name of one is misspelt.

    Appends each variable that is not a setting to `ignored`, with a text that says so.
    """
    values = {}
    for written, value in variables.items():
        variable = written.upper()
        if not variable.startswith(PREFIX) or variable == CONFIG_FILE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in Settings.model_fields:
            values[name] = value
        elif not _SERVICE_LINK.fullmatch(written):
            similar = _find_similar(name)
            text = _unknown(written, source, variable_of(similar) if similar else "")
            if similar and _distance(name, similar) <= _MISSPELT:
                raise SettingsError(text)
            ignored.append((variable, text))
    return values


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        return {name: value or "" for name, value in dotenv_values(path).items()}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {_reason(error)}") from None


def _read_toml(directory: Path, file: str) -> dict[str, Any]:
    path = directory / file
    shown = f"{CONFIG_FILE}={file}" if _is_harmless(file) else CONFIG_FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{shown} cannot be read: {_reason(error)}") from None
    except tomllib.TOMLDecodeError as error:
        # Only the place: the rest of the text may quote the line.
        place = re.search(r"\((at [a-z0-9 ,]+)\)$", str(error))
        raise SettingsError(f"{shown} is not TOML: {place[1] if place else 'it has a syntax error'}") from None
    for name in values:
        if name not in Settings.model_fields:
            similar = _find_similar(name.lower().removeprefix(PREFIX.lower()))
            raise SettingsError(_unknown(name, file, similar))
    return values


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8"


def _find_similar(name: str) -> str:
    return next(iter(difflib.get_close_matches(name, Settings.model_fields, n=1)), "")


def _distance(one: str, other: str) -> int:
    """Return the number of letters to insert, remove or replace that make `one` the other."""
    row = list(range(len(other) + 1))
    for letter in one:
        above, row = row, [row[0] + 1]
        for column, wanted in enumerate(other):
            row.append(min(above[column] + (letter != wanted), above[column + 1] + 1, row[column] + 1))
    return row[-1]


def _unknown(written: str, source: str, similar: str) -> str:
    name = written if _is_harmless(written) else "a name"
    source = source if _is_harmless(source) else "the file"
    hint = f"did you mean {similar}?" if similar else "`cart-grpc config` lists all settings"
    return f"{name} in {source} is not a setting; {hint}"


def _explain(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if is_duration(name):
        bounds = error.get("ctx", {}).items()
        limits = [f"must be {_BOUNDS[key]} {format_duration(to_us(bound))}" for key, bound in bounds if key in _BOUNDS]
        message = limits[0] if limits else message
    value = error["input"]
    shown = f" (it is {value!r})" if "url" not in name and _is_harmless(str(value)) else ""
    return f"{variable_of(name)}: {message}{shown}"


def _is_harmless(value: str) -> bool:
    return value.isprintable() and not _MAY_BE_SECRET.search(value) and not is_token_or_key(value)
