"""The protos: options for callers in other languages, and the names that depend on the packages."""

import importlib
from pathlib import Path

import pytest
from cartgrpc.v1 import cart_pb2
from google.protobuf.descriptor_pb2 import FileOptions

from cart_grpc.rpc import status
from cart_grpc.simulator import grpc_endpoint

PROTOS = Path(__file__).parents[1] / "protos"
FILES = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))


def options_of(file: str) -> FileOptions:
    """The options of a proto file, from its generated module."""
    module = importlib.import_module(file.removesuffix(".proto").replace("/", ".") + "_pb2")
    options: FileOptions = module.DESCRIPTOR.GetOptions()
    return options


def test_all_protos_are_found() -> None:
    assert {file.rpartition("/")[0] for file in FILES} == {
        "cartgrpc/reservation/v1",
        "cartgrpc/simulator/v1",
        "cartgrpc/v1",
    }


@pytest.mark.parametrize("file", FILES)
def test_every_proto_has_the_options_that_other_languages_need(file: str) -> None:
    options, folder, name = options_of(file), *file.removesuffix(".proto").rsplit("/", 1)
    pascal = [{"cartgrpc": "CartGrpc"}.get(part, part.capitalize()) for part in folder.split("/")]
    go_package, _, go_name = options.go_package.partition(";")
    assert go_package == folder
    assert go_name.isidentifier()
    assert options.java_package == folder.replace("/", ".")
    assert options.java_multiple_files
    assert options.java_outer_classname == "".join(part.capitalize() for part in name.split("_")) + "Proto"
    assert options.csharp_namespace == ".".join(pascal)
    assert options.php_namespace == "\\".join(pascal)
    assert options.ruby_package == "::".join(pascal)


def test_go_packages_of_different_folders_have_different_names() -> None:
    names = {options_of(file).go_package for file in FILES}
    assert len({name.partition(";")[2] for name in names}) == len(names)


def test_the_error_domains_are_the_packages() -> None:
    assert status.DOMAIN == cart_pb2.DESCRIPTOR.package == "cartgrpc.v1"
    assert grpc_endpoint.RESERVATION_SERVICE.startswith(f"{grpc_endpoint._ERROR_DOMAIN}.ReservationService")
