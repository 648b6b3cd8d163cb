"""The options with which a command connects by TLS to a server of this service."""

import argparse
from collections.abc import Callable, Mapping
from typing import Final

from cart_grpc.tls.client import TlsFiles, check_pair
from cart_grpc.tls.reloaded_files import NamedFile

TLS_FILES: Final = {
    "ca_file": "PEM file with the authorities of the server's certificate",
    "cert_file": "PEM file with the certificate chain to show to the server",
    "key_file": "PEM file with the private key of that certificate",
}
"""The options by their names in the arguments, with their meanings."""


def option_of(name: str) -> str:
    """Return the option with this name in the arguments."""
    return f"--{name.replace('_', '-')}"


def add_tls_files(command: argparse.ArgumentParser, defaults: Mapping[str, str]) -> None:
    """Add an option for each file. `defaults` has the settings or variables that are used without it."""
    for name, meaning in TLS_FILES.items():
        command.add_argument(option_of(name), metavar="FILE", help=f"{meaning}; default: {defaults[name]}")


def find_file(
    arguments: argparse.Namespace, name: str, find_default: Callable[[str], NamedFile | None]
) -> NamedFile | None:
    """Return the file that an option names, else its default; None if there is neither."""
    path = getattr(arguments, name)
    return NamedFile(option_of(name), path) if path else find_default(name)


def find_tls_files(arguments: argparse.Namespace, find_default: Callable[[str], NamedFile | None]) -> TlsFiles:
    """Return the files of the options and their defaults. Raises FileError for a certificate without its key."""
    authorities, certificate, key = (find_file(arguments, name, find_default) for name in TLS_FILES)
    check_pair(certificate, key, (option_of("cert_file"), option_of("key_file")))
    return TlsFiles(authorities, certificate, key)
