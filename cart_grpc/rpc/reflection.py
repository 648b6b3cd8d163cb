"""Server reflection in both versions, `grpc.reflection.v1` and `v1alpha`: their messages are the same on the wire.

grpcio-reflection has only v1alpha, but some clients ask only for v1 or try it first. By default it describes every
message that the process knows, those of other ports included. Here it knows the files of its own services only.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

V1ALPHA: Final = "grpc.reflection.v1alpha.ServerReflection"
V1: Final = "grpc.reflection.v1.ServerReflection"


def add_reflection(pipeline: Any, services: Iterable[str]) -> None:
    """Add both versions to a pipeline. They list `services` and themselves, and describe nothing else."""
    names = (*services, V1ALPHA)
    servicer = reflection.aio.ReflectionServicer((*names, V1), pool=_pool_of(names))
    add: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add(servicer, _BothVersions(pipeline))


class _BothVersions:
    """Adds the handlers of v1alpha to a pipeline under both names."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Do nothing, as the pipeline does."""

    def add_registered_method_handlers(self, _: str, handlers: Mapping[str, Any]) -> None:
        for service in (V1, V1ALPHA):
            self._pipeline.add_registered_method_handlers(service, handlers)


@cache
def _pool_of(services: tuple[str, ...]) -> descriptor_pool.DescriptorPool:
    """Return a pool of the files that define the services, and of those that these import. It has v1, too."""
    known, pool = descriptor_pool.Default(), descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name not in added:
            added.add(file.name)
            for needed in file.dependencies:
                add(needed)
            pool.Add(_copy(file))

    for service in services:
        described: Any = known.FindServiceByName(service)
        add(described.file)
    # v1alpha under its other name.
    text = text_format.MessageToString(_copy(reflection_pb2.DESCRIPTOR)).replace("v1alpha", "v1")
    pool.Add(text_format.Parse(text, FileDescriptorProto()))
    return pool


def _copy(file: Any) -> FileDescriptorProto:
    copy = FileDescriptorProto()
    file.CopyToProto(copy)
    return copy
